"""Agents written with other people's SDKs, each run twice: straight at a provider, and with only URL and key changed.

An agent's run is right when it ended with the same report, the provider received the same bytes, and Ratchet captured
every call of it as one run. What may differ in a request is named here, and nothing else may."""

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conformance import packages
from tests.conformance.product import Product, Project, becomes_true
from tests.conformance.provider import script
from tests.conformance.provider.server import Provider, Received, scripted_provider

AGENTS = Path(__file__).resolve().parent / "agents"
CREDENTIAL = "sk-the-provider-s-own"
RUN_TIMEOUT_S = 120.0
CAPTURE_TIMEOUT_S = 20.0

QUIET = {
    "DO_NOT_TRACK": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    # Whatever an SDK would send elsewhere all the same ends at a port that nobody listens on.
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1",
}
"""No SDK reports to its maker."""

MAY_DIFFER = {"host", "authorization", "x-api-key", "content-length", "connection", "sec-websocket-key"}
"""Headers that belong to the caller, to one connection, or follow from the body."""

USAGE_QUESTION = b'"stream_options":{"include_usage":true}'
"""What Ratchet adds to a streamed chat completion whose client did not ask for the usage."""


@dataclass(frozen=True)
class Agent:
    """A program that works one question off with an SDK."""

    name: str
    file: str
    variables: Mapping[str, str] = field(default_factory=dict)
    is_socket: bool = False
    shows_history: bool = True
    """Its requests repeat the conversation, which is what stitches calls into a run; where they name an earlier
    response or share a connection instead, the run is not judged."""

    @property
    def calls(self) -> int:
        """How many calls Ratchet should keep of a run: one a turn, and one for a WebSocket connection itself."""
        return script.TURNS + self.is_socket


FLEET = (
    Agent("openai (Python), chat completions", "openai_chat.py"),
    Agent("openai (Python), responses", "openai_responses.py", {"CONTINUES_BY": "history"}),
    Agent(
        "openai (Python), responses by `previous_response_id`",
        "openai_responses.py",
        {"CONTINUES_BY": "id"},
        shows_history=False,
    ),
    Agent("openai (Node), chat completions", "openai_node.mjs"),
    Agent("LangChain", "langchain_agent.py"),
    Agent("OpenAI Agents SDK, responses", "openai_agents_sdk.py", {"API_SHAPE": "responses"}),
    Agent("OpenAI Agents SDK, chat completions", "openai_agents_sdk.py", {"API_SHAPE": "chat_completions"}),
    Agent("Vercel AI SDK, responses", "vercel_ai.mjs", {"PROVIDER": "openai"}),
    Agent("Vercel AI SDK, chat completions", "vercel_ai.mjs", {"PROVIDER": "openai-chat"}),
    Agent("Vercel AI SDK, openai-compatible", "vercel_ai.mjs", {"PROVIDER": "openai-compatible"}),
    Agent("anthropic (Python), messages", "anthropic_messages.py"),
    Agent(
        "openai (Python), responses over WebSocket",
        "openai_responses_socket.py",
        is_socket=True,
        shows_history=False,
    ),
    Agent("openai (Python), realtime", "openai_realtime.py", is_socket=True, shows_history=False),
)


@dataclass(frozen=True)
class Finding:
    """What came of one agent."""

    agent: Agent
    calls: int
    """How many calls of the run through the gateway were captured."""
    faults: list[str]
    """Sentences; none when all is right."""


@dataclass(frozen=True)
class Fleet:
    """The agents as installed."""

    python: Path
    scripts: Path
    """A copy beside `node_modules`: where Node looks for packages follows from where a file lies."""

    def run(self, agent: Agent, *, base_url: str, key: str) -> tuple[dict[str, Any], str]:
        """The agent's report, empty when it failed, and its last words."""
        interpreter = str(self.python) if agent.file.endswith(".py") else "node"
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHON"))
        }
        environment |= {**QUIET, **agent.variables, "BASE_URL": base_url, "API_KEY": key}
        try:
            done = subprocess.run(
                [interpreter, str(self.scripts / agent.file)],
                env=environment, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {}, f"not done after {RUN_TIMEOUT_S:.0f} s"
        words = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return (json.loads(done.stdout) if done.returncode == 0 else {}), words


def install(home: Path, node: Path) -> Fleet:
    """Fetch and prepare what the agents need, under `home`; `node` is the folder of `node_modules`."""
    scripts = node / "agents"
    shutil.rmtree(scripts, ignore_errors=True)
    shutil.copytree(AGENTS, scripts)
    return Fleet(packages.python_with(AGENTS / "requirements.txt", home / "agents-venv"), scripts)


def compare(fleet: Fleet, product: Product) -> list[Finding]:
    """Run every agent both ways."""
    with scripted_provider() as provider:
        project = product.create_project("agents", upstream=provider.base_url, credential=CREDENTIAL)
        findings = []
        for number, agent in enumerate(FLEET):
            print(f"{agent.name} ...", flush=True)
            findings.append(_compare(fleet, agent, f"{number:02d}q7w8e9", provider, project))
        return findings


def _compare(fleet: Fleet, agent: Agent, run: str, provider: Provider, project: Project) -> Finding:
    provider.begin(run)
    direct, words = fleet.run(agent, base_url=provider.base_url, key=CREDENTIAL)
    sent = provider.received
    if direct.get("answer") != script.ANSWER or len(direct["tools"]) != len(script.CALLS):
        return Finding(agent, 0, [f"directly, it did not do its work: {words}"])
    known = {call["id"] for call in project.calls()}
    provider.begin(run)
    through, words = fleet.run(agent, base_url=project.base_url, key=project.key)
    if not through:
        return Finding(agent, 0, [f"through the gateway, it failed: {words}"])
    faults = [
        f"`{name}` is {through[name]!r}, directly {direct[name]!r}"
        for name in direct
        if through[name] != direct[name]
    ]
    faults += _request_faults(sent, provider.received, project.key)
    calls = _captured(agent, project, known)
    return Finding(agent, len(calls), faults + _capture_faults(agent, calls))


def _request_faults(direct: Sequence[Received], through: Sequence[Received], key: str) -> list[str]:
    """How what the provider received differs from what it received directly."""
    if [(r.method, r.path) for r in direct] != [(r.method, r.path) for r in through]:
        return [f"the provider got {[(r.method, r.path) for r in through]}"]
    faults = []
    for number, (expected, found) in enumerate(zip(direct, through, strict=True), 1):
        if key in str(found.headers) or key.encode() in found.body:
            faults.append(f"request {number}: the project's key reached the provider")
        if expected.body != found.body and expected.body != without_usage_question(found.body):
            faults.append(f"request {number}: the body differs")
        if expected.frames != found.frames:
            faults.append(f"request {number}: the frames differ")
        # To take the usage out again, Ratchet has to read the answer: it asks for it uncompressed.
        may_differ = MAY_DIFFER | ({"accept-encoding"} if expected.body != found.body else set())
        sent, arrived = _headers(expected, may_differ), _headers(found, may_differ)
        if sent != arrived:
            missing, added = sorted((sent - arrived).elements()), sorted((arrived - sent).elements())
            faults.append(f"request {number}: headers missing {missing}, added {added}")
    return faults


def _headers(received: Received, but: Set[str]) -> Counter[tuple[str, str]]:
    return Counter((name, value) for name, value in received.headers if name not in but)


def without_usage_question(body: bytes) -> bytes:
    """The body as it was before Ratchet asked for the usage."""
    for spelled in (b"," + USAGE_QUESTION, USAGE_QUESTION + b","):
        if spelled in body:
            return body.replace(spelled, b"", 1)
    return body


def _captured(agent: Agent, project: Project, known: Set[str]) -> list[dict[str, Any]]:
    """The calls that were captured since `known`, once they are all there and stitched; as they are after a while."""
    calls: list[dict[str, Any]] = []

    def are_stitched() -> bool:
        calls[:] = [call for call in project.calls() if call["id"] not in known]
        return len(calls) >= agent.calls and all(call["run_id"] for call in calls if _is_turn(call))

    becomes_true(are_stitched, CAPTURE_TIMEOUT_S)
    return calls


def _capture_faults(agent: Agent, calls: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the record of a run."""
    if len(calls) != agent.calls:
        return [f"{len(calls)} calls were captured, not {agent.calls}"]
    faults = [
        f"a call was captured as {call['outcome']}, status {call['status_code']}"
        for call in calls
        if call["outcome"] != "complete"
    ]
    turns = [call for call in calls if _is_turn(call)]
    tokens = [(call["prompt_tokens"], call["completion_tokens"]) for call in turns]
    if set(tokens) != {(script.PROMPT_TOKENS, script.COMPLETION_TOKENS)}:
        faults.append(f"the usage captured is {tokens}")
    runs = {call["run_id"] for call in turns}
    if None in runs:
        faults.append("its calls were captured, but are not stitched")
    elif agent.shows_history and len(runs) != 1:
        faults.append(f"its calls were stitched into {len(runs)} runs")
    return faults


def _is_turn(call: Mapping[str, Any]) -> bool:
    """Whether the call asked the model something: opening a WebSocket does not."""
    return bool(call["model_requested"])
