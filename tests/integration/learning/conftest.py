"""A project with runs that are over, an object store of its own, and a far side in place of the trainer."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from accounts.models import ApiKey, Organization, Project
from audit.actions import Actor
from kernel.ids import uuid7
from kernel.objects import ObjectStore
from learning import reward_specs
from learning.models import RewardSpecVersion
from telemetry import runs
from telemetry import signals as signal_services
from telemetry.models import Call, Run, Signal
from telemetry.stitching import extend, roll
from tests.fakes.bodies import keep_body
from workers.app import app

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MAYA = Actor.user(id=1, name="maya", role="operator")
SPEC: dict[str, Any] = {
    "schema": 2,
    "name": "desk",
    "outcome": {"resolved": {"signal": "resolved", "weight": 1.0, "missing": "none"}},
    "cost": {"model calls": {"fact": "model_calls", "weight": 0.02}},
    "risk": {"harm": {"signal": "risk", "weight": 0.5, "missing": "skip"}},
    "step": {
        "malformed": {"fact": "malformed", "weight": -0.2},
        "repeated": {"fact": "repeated", "weight": -0.05},
    },
}
SYSTEM = {"role": "system", "content": "You work at a support desk."}


@pytest.fixture(autouse=True, scope="session")
def broker(servers: None) -> None:
    """Hints go to the Redis of this home, from every thread; nobody works on them here."""
    app.set_default()


@pytest.fixture(autouse=True)
def store(db: None, settings: Any, tmp_path: Path) -> ObjectStore:
    settings.OBJECT_STORE = settings.LARGE_OBJECTS = ObjectStore(tmp_path / "objects")
    return settings.OBJECT_STORE


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def maya() -> Actor:
    return MAYA


@pytest.fixture
def project() -> Project:
    organization = Organization.objects.create(name="desk", created_at=NOW)
    made = Project.objects.create(organization=organization, name="desk", created_at=NOW)
    ApiKey.objects.create(project=made, name="agent", prefix="rk_test", digest=b"d" * 32, created_at=NOW)
    return made


@pytest.fixture
def reward_spec(project: Project) -> RewardSpecVersion:
    return reward_specs.publish(project=project, name="desk", document=SPEC, actor=MAYA, now=NOW)


@dataclass(frozen=True)
class Lived:
    """One run that the project has lived through."""

    run: Run
    calls: list[Call]


LiveRun = Callable[..., Lived]


@pytest.fixture
def live_run(project: Project) -> LiveRun:
    """An agent's run of two turns, with a tool call: captured, stitched, with its signals joined."""
    key = ApiKey.objects.get(project=project)
    sequence = iter(range(1_000_000))

    def call(
        messages: Sequence[dict[str, Any]], answer: dict[str, Any], at: datetime, **columns: Any
    ) -> Call:
        hashes = roll(messages)
        made = Call.objects.create(
            **{
                "id": uuid7(),
                "project": project,
                "api_key": key,
                "process": "gateway-1",
                "boot": "boot-1",
                "sequence": next(sequence),
                "method": "POST",
                "dialect": "chat",
                "path": "/v1/chat/completions",
                "model_requested": "support-desk",
                "outcome": "complete",
                "prefix_hash": hashes.prefix,
                "parent_hashes": list(hashes.parents),
                "echo_hash": extend(hashes.prefix, answer),
                "prompt_tokens": 40,
                "completion_tokens": 10,
                "started_at": at,
                "ended_at": at + timedelta(milliseconds=300),
            }
            | columns
        )
        keep_body(
            made,
            request=json.dumps({"model": "support-desk", "messages": messages}).encode(),
            response=json.dumps({"choices": [{"message": answer}]}).encode(),
        )
        return made

    def live(
        task: str = "", *, at: float = 0.0, signals: dict[str, Any] | None = None, **columns: Any
    ) -> Lived:
        number = next(sequence)
        began = NOW + timedelta(seconds=at)
        ticket = [SYSTEM, {"role": "user", "content": f"Ticket {number}: my lamp is broken."}]
        asks = {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": f"call_{number}",
                    "type": "function",
                    "function": {"name": "lookup_order", "arguments": '{"order_id": "4817"}'},
                }
            ],
        }
        found = {"role": "tool", "tool_call_id": f"call_{number}", "content": '{"total": 30}'}
        done = {"role": "assistant", "content": "I refunded it."}
        calls = [
            call(ticket, asks, began, **columns),
            call([*ticket, asks, found], done, began + timedelta(seconds=1), **columns),
        ]
        runs.stitch_pending(project_id=project.id, now=began + timedelta(minutes=1))
        calls[0].refresh_from_db()
        given = dict(signals or {})
        if task:
            given["task"] = task
        for name, value in given.items():
            observe(calls[0], name, value, began + timedelta(seconds=30))
        signal_services.join_pending(project_id=project.id, now=began + timedelta(minutes=1))
        return Lived(Run.objects.get(id=calls[0].step.run_id), calls)

    def observe(about: Call, name: str, value: Any, at: datetime) -> None:
        Signal.objects.create(
            id=uuid7(),
            project=project,
            api_key=key,
            target_type="call_id",
            target=str(about.id),
            name=name,
            value=value,
            observed_at=at,
            received_at=at,
            stored_at=at,
        )

    return live


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[[str], list[str]]:
    """A far side in place of `python -m workers.trainer`: runs `body` with `command`, `folder` and
    `document` at hand."""

    def make(body: str) -> list[str]:
        script = tmp_path / "trainer.py"
        script.write_text(
            "import json, os, sys, time\n"
            "from pathlib import Path\n"
            "command, folder = sys.argv[1], Path(sys.argv[2])\n"
            "name = 'job.json' if command == 'train' else 'evaluation.json'\n"
            "document = json.loads((folder / name).read_text())\n"
            "def finish(**result):\n"
            "    whole = {'schema': 1, 'status': 'succeeded', 'error': None, **result}\n"
            "    (folder / 'result.json').write_text(json.dumps(whole))\n"
            "def progress(**line):\n"
            "    with (folder / 'progress.jsonl').open('a') as file:\n"
            "        file.write(json.dumps(line) + '\\n')\n" + body
        )
        return [sys.executable, str(script)]

    return make
