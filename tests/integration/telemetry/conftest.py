"""Tenants, and the recorded airline runs as the calls that a gateway would have seen."""

import gzip
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from accounts.models import ApiKey, Organization, Project
from kernel.ids import uuid7
from telemetry.models import Call
from telemetry.stitching import extend, roll, said
from telemetry.tracker import RunTracker
from workers.app import app

AIRLINE = Path(__file__).parents[3] / "platform" / "demo" / "data" / "tau_airline_gpt4o_runs.jsonl.gz"
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True, scope="session")
def broker(servers: None) -> None:
    """Hints go to the Redis of this home, from every thread; nobody works on them here."""
    app.set_default()


@pytest.fixture(autouse=True)
def database(db: None) -> None:
    """Every test here runs on PostgreSQL, in a transaction that is rolled back."""


@dataclass(frozen=True)
class Tenant:
    organization: Organization
    project: Project
    key: ApiKey


def make_tenant(name: str) -> Tenant:
    organization = Organization.objects.create(name=name, created_at=NOW)
    project = Project.objects.create(organization=organization, name=name, created_at=NOW)
    key = ApiKey.objects.create(
        project=project, name="agent", prefix="rk_test", digest=name.encode().ljust(32, b"."), created_at=NOW
    )
    return Tenant(organization, project, key)


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def tenant() -> Tenant:
    return make_tenant("airline")


@pytest.fixture
def stranger() -> Tenant:
    return make_tenant("stranger")


MakeCall = Callable[..., Call]


@pytest.fixture
def make_call(tenant: Tenant) -> MakeCall:
    """A call that has not been stitched: `messages` and `answer` as the SDK would send and receive them."""
    sequence = iter(range(1_000_000))

    def make(
        messages: Sequence[dict[str, Any]] = (),
        answer: dict[str, Any] | None = None,
        *,
        at: float = 0.0,
        tenant: Tenant = tenant,
        **columns: Any,
    ) -> Call:
        started_at = NOW + timedelta(seconds=at)
        hashes = roll(messages) if messages else None
        values: dict[str, Any] = {
            "id": uuid7(),
            "project": tenant.project,
            "api_key": tenant.key,
            "process": "gateway-1",
            "boot": "boot-1",
            "sequence": next(sequence),
            "method": "POST",
            "dialect": "chat" if messages else "embeddings",
            "path": "/v1/chat/completions" if messages else "/v1/embeddings",
            "model_requested": "gpt-4o",
            "outcome": "complete" if answer or not messages else "upstream_error",
            "prefix_hash": hashes.prefix if hashes else None,
            "parent_hashes": list(hashes.parents) if hashes else [],
            "repeat_hashes": list(hashes.repeats) if hashes else [],
            "result_hashes": list(hashes.results) if hashes else [],
            "echo_hash": extend(hashes.prefix, answer) if hashes and answer else None,
            "said_hash": said(answer) if answer else None,
            "started_at": started_at,
            "ended_at": started_at + timedelta(seconds=0.4),
        }
        return Call.objects.create(**values | columns)

    return make


@dataclass(frozen=True)
class Traffic:
    """What the gateway saw of many runs that went on at the same time."""

    calls: list[Call]
    truth: dict[UUID, int]
    """Call id -> number of the recorded run."""


@pytest.fixture
def airline_traffic(tenant: Tenant) -> Callable[[int, int], Traffic]:
    """All recorded airline runs, `width` at a time, interleaved at random; told run ids as a gateway tells
    them."""

    def interleave(width: int, seed: int) -> Traffic:
        with gzip.open(AIRLINE, "rt") as lines:
            recorded = [json.loads(line)["traj"] for line in lines]
        rng = random.Random(seed)
        tracker = RunTracker()
        waiting = list(range(len(recorded)))
        rng.shuffle(waiting)
        running: list[tuple[int, list[int]]] = []
        calls: list[Call] = []
        truth: dict[UUID, int] = {}
        while waiting or running:
            while waiting and len(running) < width:
                number = waiting.pop()
                turns = [i for i, message in enumerate(recorded[number]) if message["role"] == "assistant"]
                running.append((number, turns))
            number, turns = rng.choice(running)
            position = turns.pop(0)
            if not turns:
                running.remove((number, turns))
            hashes = roll(recorded[number][:position])
            guess = tracker.open(tenant.key.id, hashes)
            echo = extend(hashes.prefix, recorded[number][position])
            tracker.answered(tenant.key.id, guess.run_id, echo)
            started_at = NOW + timedelta(milliseconds=100 * len(calls))
            call = Call(
                id=uuid7(),
                project=tenant.project,
                api_key=tenant.key,
                process="gateway-1",
                boot="boot-1",
                sequence=len(calls),
                method="POST",
                dialect="chat",
                path="/v1/chat/completions",
                model_requested="gpt-4o",
                outcome="complete",
                run_hint=guess.run_id,
                prefix_hash=hashes.prefix,
                parent_hashes=list(hashes.parents),
                echo_hash=echo,
                started_at=started_at,
                ended_at=started_at + timedelta(milliseconds=90),
            )
            calls.append(call)
            truth[call.id] = number
        return Traffic(calls, truth)

    return interleave
