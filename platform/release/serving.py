"""Policy nodes: which there are, what they have loaded, and loading what deployments need.

Speaks the part of vLLM's HTTP interface that our own policy server has as well: `GET /v1/models`,
`POST /v1/load_lora_adapter`, `POST /v1/chat/completions`. A node that is down or came back empty is no error:
the next sweep finds it and loads again. Never unloads: an earlier champion must be able to answer at once."""

import logging
from datetime import datetime
from uuid import UUID

import httpx
from django.conf import settings
from django.db import transaction
from django.db.models import Q

from kernel.notify import ROUTES_CHANGED, notify
from learning.artifacts import UnsafeArtifact, check_adapter, directory_digest
from release.models import Deployment, ModelVersion, PolicyNode, Promotion, PromotionState

log = logging.getLogger(__name__)

EMBEDDED = "embedded"
"""Name of the policy server that runs beside the product; its port may change from one start to the next."""
LOAD_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 20.0

_away: set[UUID] = set()
"""Nodes that did not answer when this process last looked: it logs when one goes away and when it is back, not
every look."""


@transaction.atomic
def register_node(*, base_url: str, base_model: str, base_sha256: str, name: str = "") -> PolicyNode:
    """Make a node known, or say anew where it is and which base it serves.

    `base_url` is an origin without a path; `name` is the origin's host and port unless told."""
    origin = httpx.URL(base_url.rstrip("/"))
    if origin.scheme not in {"http", "https"} or not origin.host or origin.path not in {"", "/"}:
        raise ValueError(f"a node's URL is an origin such as http://127.0.0.1:8402, not {base_url!r}")
    node, _ = PolicyNode.objects.update_or_create(
        name=name or origin.netloc.decode(),
        defaults={"base_url": str(origin).rstrip("/"), "base_model": base_model, "base_sha256": base_sha256},
    )
    notify(ROUTES_CHANGED)
    return node


def sync_node(*, node: PolicyNode, now: datetime) -> list[str]:
    """Load what is missing on a node and note what it serves; returns the names loaded by this call."""
    with httpx.Client(base_url=node.base_url, timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
        try:
            listed = _listed(client)
            missing = [version for version in needed(node) if version.served_name not in listed]
            loaded = [version.served_name for version in missing if _load(client, version)]
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            if node.pk not in _away:
                log.warning("policy node %s does not answer: %s", node.name, error or type(error).__name__)
                _away.add(node.pk)
            return []
    if node.pk in _away:
        log.warning("policy node %s answers again", node.name)
        _away.remove(node.pk)
    with transaction.atomic():
        PolicyNode.objects.filter(pk=node.pk).update(loaded=sorted({*listed, *loaded}), seen_at=now)
        if set(node.loaded) != {*listed, *loaded}:
            notify(ROUTES_CHANGED)
    return loaded


def needed(node: PolicyNode) -> list[ModelVersion]:
    """The adapters a node of this base must hold: all that may answer, and all that can be gone back to."""
    promoted = Promotion.objects.filter(Q(state=PromotionState.APPROVED) | Q(champion_at__isnull=False))
    return list(
        ModelVersion.objects.filter(
            Q(pk__in=Deployment.objects.values("champion"))
            | Q(pk__in=Deployment.objects.filter(canary__isnull=False).values("canary"))
            | Q(pk__in=promoted.values("candidate")),
            base_sha256=node.base_sha256,
        )
        .exclude(adapter_path="")
        .order_by("pk")
    )


def why_not_ready(version: ModelVersion) -> str:
    """Why no node can answer with `version` at this moment; empty when one just did."""
    nodes = PolicyNode.objects.filter(base_sha256=version.base_sha256, loaded__contains=[version.served_name])
    obstacle = f"waiting for a policy node to load {version.served_name}"
    for node in nodes.order_by("-seen_at"):
        request = {
            "model": version.served_name,
            "messages": [{"role": "user", "content": "ping"}],
            "max_tokens": 1,
            "temperature": 0,
        }
        try:
            answer = httpx.post(
                f"{node.base_url}/v1/chat/completions",
                json=request,
                timeout=ANSWER_TIMEOUT_S,
                trust_env=False,
            )
        except httpx.HTTPError as error:
            obstacle = f"{node.name} does not answer: {error or type(error).__name__}"
            continue
        if answer.status_code == 200:
            return ""
        obstacle = f"{node.name} answers {answer.status_code} for {version.served_name}"
    return obstacle


def _listed(client: httpx.Client) -> set[str]:
    answer = client.get("/v1/models").raise_for_status().json()
    return {str(model["id"]) for model in answer["data"]}


def _load(client: httpx.Client, version: ModelVersion) -> bool:
    folder = settings.OBJECT_STORE.path(version.adapter_path)
    try:
        check_adapter(folder)
        if directory_digest(folder) != version.adapter_sha256:
            raise UnsafeArtifact(f"{folder} is not what was registered as {version}")
    except UnsafeArtifact as error:
        log.error("adapter of %s refused: %s", version, error)
        return False
    answer = client.post(
        "/v1/load_lora_adapter",
        json={"lora_name": version.served_name, "lora_path": str(folder)},
        timeout=LOAD_TIMEOUT_S,
    )
    if answer.status_code != 200:
        log.warning("loading %s: %s %s", version.served_name, answer.status_code, answer.text[:300])
    return answer.status_code == 200
