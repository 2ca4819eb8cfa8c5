"""Our own node behind the gateway: token ids and logprobs of every answer are kept, and no client sees them."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from release.routing import Route, Target
from telemetry.exchange import sampled_tokens
from tests.fakes.served_gateway import served_gateway
from tests.integration.policy_server.test_policy_server import NAME, serving

ASKED = {
    "model": "desk",
    "messages": [{"role": "user", "content": "Order 4817: my lamp is broken."}],
    "seed": 7,
}


@pytest.fixture(scope="module")
def node() -> Any:
    with serving("--port", "0") as (_, address):
        yield address


@pytest.mark.parametrize("stream", [False, True])
def test_ids_and_logprobs_are_kept_and_not_seen(node: str, tmp_path: Path, stream: bool) -> None:
    target = Target("01a1fe0f-274d-73bb-8e2d-d79aea8436f3", "desk-v1", NAME, node)
    route = Route(
        project_id="01a1fe0f-274d-73bb-8e2d-d79aea8436f4",
        alias="desk",
        deployment_id="01a1fe0f-274d-73bb-8e2d-d79aea8436f5",
        champion=target,
        canary=None,
        canary_share=0.0,
        salt="s",
    )
    body = ASKED | {"stream": stream}
    with served_gateway(tmp_path) as gateway:
        tenant = gateway.add_tenant(routes={"desk": route})
        through = ask(gateway.origin, tenant.key, body)
        direct = ask(node, "none", body | {"model": NAME})
        assert shape(through.text) == shape(direct.text)
        assert "token_ids" not in through.text
        _, end = gateway.call(through.headers["x-ratchet-call-id"])
        tokens = sampled_tokens(end.response, "chat")
        assert tokens
        assert len(tokens.token_ids) == len(tokens.logprobs) == end.completion_tokens
        assert set(end.hidden) == {"token_ids", "logprobs"} | ({"usage"} if stream else set())
        # A client that asks for them itself gets them.
        own = ask(gateway.origin, tenant.key, body | {"return_token_ids": True, "logprobs": True})
        assert "token_ids" in own.text
        assert '"logprob"' in own.text


def ask(origin: str, key: str, body: dict[str, Any]) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    return httpx.post(f"{origin}/v1/chat/completions", headers=headers, content=json.dumps(body), timeout=60)


def shape(text: str) -> str:
    """The answer without what differs from one to the next: ids, times, the model's name."""
    return re.sub(r'"(id|created|model)": ?("[^"]*"|\d+)', r'"\1"', text)
