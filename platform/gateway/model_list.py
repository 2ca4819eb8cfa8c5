"""`GET /v1/models`: the project's own names in OpenAI's shape, with the models of its upstream behind them.

Only a project with names of its own is answered here; without one, the request passes through like any other."""

import asyncio
import logging
from collections.abc import Container, Sequence
from typing import Any
from urllib.parse import unquote

import orjson

from gateway.headers import to_upstream
from gateway.request import Request
from gateway.routing import Destination, ProjectRoutes
from gateway.wire.client import UpstreamFailure
from gateway.wire.origin import Origin
from gateway.wire.pool import Pool

log = logging.getLogger(__name__)

UPSTREAM_TIMEOUT_S = 10.0
MAX_LIST_BYTES = 16 << 20


def names(routes: ProjectRoutes) -> list[str]:
    """What the project calls models by itself: aliases and deployments."""
    return sorted({*routes.aliases, *routes.deployments}) if routes.aliases or routes.deployments else []


async def answer_all(request: Request, own: Sequence[str], upstream: Destination | None, pool: Pool) -> None:
    """The project's names, then what its upstream lists; without the upstream when that cannot be had."""
    models = [_model(name) for name in own]
    if upstream is not None:
        listed = await _listed_by(upstream, request, pool)
        models += [model for model in listed if model.get("id") not in own]
    request.exchange.answer(200, orjson.dumps({"object": "list", "data": models}))


def answer_one(request: Request, name: str) -> None:
    """One name, as `/v1/models/<name>` asks for it."""
    request.exchange.answer(200, orjson.dumps(_model(name)))


def name_asked_for(path: str, own: Container[str]) -> str:
    """The name that the path behind `/v1` asks about, or an empty text when it is none of `own`."""
    if not path.startswith("/models/"):
        return ""
    name = unquote(path.removeprefix("/models/"))
    return name if name in own else ""


async def _listed_by(upstream: Destination, request: Request, pool: Pool) -> list[dict[str, Any]]:
    headers = to_upstream(request.headers, upstream.auth, without=[b"accept-encoding"])
    origin, prefix = Origin.of(upstream.base_url)
    try:
        async with asyncio.timeout(UPSTREAM_TIMEOUT_S):
            body = await pool.fetch(
                origin,
                prefix + request.target,
                headers,
                connect_timeout_s=upstream.timeouts.connect_s,
                limit_bytes=MAX_LIST_BYTES,
            )
            return [model for model in orjson.loads(body)["data"] if isinstance(model, dict)]
    except (UpstreamFailure, TimeoutError, ValueError, LookupError, TypeError) as error:
        log.info("models of %s are not listed: %s", origin, type(error).__name__)
        return []


def _model(name: str) -> dict[str, Any]:
    """A name in the shape of OpenAI's model object. It has no date of its own."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "ratchet"}
