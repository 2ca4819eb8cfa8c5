"""`GET /v1/models`: the project's aliases in OpenAI's shape, with the models of its upstream behind them.

Only a project with aliases is answered here; without one, the request passes through like any other."""

import asyncio
import logging
from collections.abc import Container, Iterable
from typing import Any
from urllib.parse import unquote

import aiohttp
import orjson
from yarl import URL

from gateway.headers import to_upstream
from gateway.request import Request
from gateway.routing import Upstream

log = logging.getLogger(__name__)

UPSTREAM_TIMEOUT_S = 10.0


async def answer_all(
    request: Request, aliases: Iterable[str], upstream: Upstream | None, session: aiohttp.ClientSession
) -> None:
    """The project's aliases, then what its upstream lists; without the upstream when that cannot be had."""
    own = sorted(aliases)
    models = [_model(alias) for alias in own]
    if upstream is not None and upstream.credential is not None:
        listed = await _listed_by(upstream, request, session)
        models += [model for model in listed if model.get("id") not in own]
    await request.client.answer(200, orjson.dumps({"object": "list", "data": models}))


async def answer_one(request: Request, alias: str) -> None:
    """One alias, as `/v1/models/<alias>` asks for it."""
    await request.client.answer(200, orjson.dumps(_model(alias)))


def alias_asked_for(path: str, aliases: Container[str]) -> str:
    """The alias that the path behind `/v1` asks about, or an empty text when it is none of `aliases`."""
    name = unquote(path.removeprefix("/models/"))
    return name if path.startswith("/models/") and name in aliases else ""


async def _listed_by(
    upstream: Upstream, request: Request, session: aiohttp.ClientSession
) -> list[dict[str, Any]]:
    headers = [
        header
        for header in to_upstream(request.headers, upstream.credential or "")
        if header[0] != "accept-encoding"
    ]
    try:
        async with (
            asyncio.timeout(UPSTREAM_TIMEOUT_S),
            session.get(
                URL(request.url_at(upstream.base_url), encoded=True), headers=headers, allow_redirects=False
            ) as response,
        ):
            data = orjson.loads(await response.read())["data"]
            return [model for model in data if isinstance(model, dict)]
    except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError) as error:
        log.info("models of %s are not listed: %s", upstream.name, type(error).__name__)
        return []


def _model(alias: str) -> dict[str, Any]:
    """An alias in the shape of OpenAI's model object. It has no date of its own."""
    return {"id": alias, "object": "model", "created": 0, "owned_by": "ratchet"}
