"""`python -m gateway` as a process, with PostgreSQL behind it: changes arrive by push, and its absence is survived."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx
import psycopg
import pytest
from django.conf import settings
from django.db import connection
from openai import OpenAI

from accounts import services as accounts
from accounts.models import Project
from audit.actions import Actor
from config.environment import Environment
from gateway import services as routing
from gateway.services import TargetSetting, set_upstream
from kernel import clock
from kernel.notify import ROUTES_CHANGED, notify
from telemetry.records import BeginRecord, EndRecord, SignalRecord
from telemetry.spool import segments
from tests.fakes.served_gateway import free_port, wait_until
from tests.fakes.upstream import RUNS, Behaviour, FakeUpstream, fake_upstream
from tests.integration.gateway.conftest import CREDENTIAL, OPENING, redis_client

ACTOR = Actor.service("test")


@pytest.fixture
def project(transactional_db: None) -> Project:
    organization = accounts.create_organization(name="Acme", actor=ACTOR, now=clock.now())
    return accounts.create_project(organization=organization, name="desk", actor=ACTOR, now=clock.now())


def make_key(project: Project) -> str:
    return accounts.create_api_key(project=project, name="k", actor=ACTOR, now=clock.now())[1]


def use_upstream(project: Project, origin: str) -> None:
    set_upstream(
        project=project,
        name="provider",
        base_url=f"{origin}/v1/",
        credential=CREDENTIAL,
        actor=ACTOR,
        now=clock.now(),
    )


@contextmanager
def process(home: Path, port: int, database_url: str = "") -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A gateway process on the test database, ready to be called."""
    database = connection.settings_dict
    url = (
        database_url or f"postgresql://{database['USER']}@/{database['NAME']}?host={quote(database['HOST'])}"
    )
    # The test's own keyring, a spool of its own.
    home.mkdir(exist_ok=True)
    (home / "keyring.json").write_bytes((settings.ENVIRONMENT.home / "keyring.json").read_bytes())
    (home / "keyring.json").chmod(0o600)
    environment = {**os.environ, "RATCHET_HOME": str(home), "DATABASE_URL": url}
    command = [sys.executable, "-m", "gateway", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "gateway.log").open("ab") as log:
        running = subprocess.Popen(command, env=environment, stderr=log)
    origin = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(f"{origin}/readyz") or running.poll() is not None, timeout_s=20)
        assert running.poll() is None, (home / "gateway.log").read_text()
        yield origin, running
    finally:
        running.kill()
        running.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def ask(origin: str, key: str) -> int:
    return httpx.post(
        f"{origin}/v1/chat/completions",
        headers={"authorization": f"Bearer {key}"},
        json={"model": "gpt-4o", "messages": OPENING},
    ).status_code


def ask_for(origin: str, key: str, upstream: FakeUpstream) -> str:
    """The model that the upstream was asked for when a client asked for gpt-4o."""
    assert ask(origin, key) == 200
    return str(json.loads(upstream.received[-1].body)["model"])


def seconds_until(condition: Callable[[], bool]) -> float:
    began = time.monotonic()
    wait_until(condition)
    return time.monotonic() - began


def test_changes_reach_the_gateway_within_a_second(
    project: Project, upstream: FakeUpstream, tmp_path: Path
) -> None:
    with process(tmp_path, free_port()) as (origin, running):
        key = make_key(project)
        assert seconds_until(lambda: ask(origin, key) == 404) < 0.9
        use_upstream(project, upstream.origin)
        assert seconds_until(lambda: ask(origin, key) == 200) < 0.9
        assert upstream.received[-1].header("authorization") == f"Bearer {CREDENTIAL}"
        entry = project.api_keys.get()
        accounts.revoke_api_key(key=entry, actor=ACTOR, now=clock.now())
        assert seconds_until(lambda: ask(origin, key) == 401) < 0.9
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0


def test_aliases_and_limits_reach_the_gateway_within_a_second(
    project: Project, upstream: FakeUpstream, tmp_path: Path
) -> None:
    by: dict[str, Any] = {"project": project, "actor": ACTOR, "now": clock.now()}
    key = make_key(project)
    use_upstream(project, upstream.origin)
    with process(tmp_path, free_port()) as (origin, _):
        assert ask(origin, key) == 200
        targets = [TargetSetting(upstream="provider", model="gpt-mini")]
        alias = routing.set_alias(name="gpt-4o", targets=targets, **by)
        assert seconds_until(lambda: ask_for(origin, key, upstream) == "gpt-mini") < 0.9
        routing.remove_alias(alias=alias, actor=ACTOR, now=clock.now())
        assert seconds_until(lambda: ask_for(origin, key, upstream) == "gpt-4o") < 0.9
        limit = routing.set_limit(api_key=None, measure="requests", amount=1, window_s=86_400, **by)
        assert seconds_until(lambda: ask(origin, key) == 429) < 0.9
        routing.remove_limit(limit=limit, actor=ACTOR, now=clock.now())
        assert seconds_until(lambda: ask(origin, key) == 200) < 0.9


def test_a_url_edited_in_the_database_gets_neither_the_credential_nor_a_call(
    project: Project, upstream: FakeUpstream, tmp_path: Path
) -> None:
    key = make_key(project)
    use_upstream(project, upstream.origin)
    with fake_upstream() as evil, process(tmp_path, free_port()) as (origin, _):
        assert ask(origin, key) == 200
        with connection.cursor() as cursor:
            cursor.execute("UPDATE gateway_upstream SET base_url = %s", [f"{evil.origin}/v1"])
        notify(ROUTES_CHANGED)
        wait_until(lambda: ask(origin, key) != 200)
        answer = httpx.get(f"{origin}/v1/files", headers={"authorization": f"Bearer {key}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_credential")
        assert "set the upstream again" in answer.json()["error"]["message"]
        assert ask(origin, key) == 502
        assert evil.received == []
        assert CREDENTIAL not in (tmp_path / "gateway.log").read_text()


@contextmanager
def database_away() -> Iterator[None]:
    """The database refuses every connection, and has ended those that stood."""
    name = connection.settings_dict["NAME"]
    parameters = {"host": connection.settings_dict["HOST"], "user": connection.settings_dict["USER"]}
    connection.close()
    with psycopg.connect(dbname="postgres", autocommit=True, **parameters) as admin:
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            yield
        finally:
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


def test_the_gateway_serves_on_while_the_database_is_away(
    project: Project, upstream: FakeUpstream, tmp_path: Path
) -> None:
    """The database refuses every connection for a while; afterwards changes arrive again."""
    key, other = make_key(project), make_key(project)
    use_upstream(project, upstream.origin)
    with process(tmp_path, free_port()) as (origin, _):
        assert ask(origin, key) == 200
        with database_away():
            wait_until(lambda: "snapshot_failures_total 0" not in httpx.get(f"{origin}/metrics").text)
            assert ask(origin, key) == 200
            body = {"run_id": "r", "name": "resolved", "value": True}
            headers = {"authorization": f"Bearer {key}"}
            assert httpx.post(f"{origin}/v1/feedback", headers=headers, json=body).status_code == 202
        revoke_all_but(key, project)
        wait_until(lambda: ask(origin, other) == 401)
        assert ask(origin, key) == 200


def test_a_gateway_killed_and_started_while_the_database_is_away_serves_what_was_known_last(
    project: Project, upstream: FakeUpstream, tmp_path: Path
) -> None:
    """It follows changes once the database is back, and a key that was revoked then does not come back."""
    key, other = make_key(project), make_key(project)
    use_upstream(project, upstream.origin)
    port, file = free_port(), tmp_path / "gateway" / "snapshot.sealed"
    with process(tmp_path, port) as (origin, running):
        wait_until(file.exists)
        running.kill()
    with ExitStack() as stack:
        with database_away():
            origin, running = stack.enter_context(process(tmp_path, port))
            assert (ask(origin, key), ask(origin, other)) == (200, 200)
            assert upstream.received[-1].header("authorization") == f"Bearer {CREDENTIAL}"
            assert ask(origin, f"{key[:-1]}x") == 401
            assert httpx.get(f"{origin}/readyz").json() == {"status": "ready", "problems": []}
            metrics = httpx.get(f"{origin}/metrics").text
            assert "snapshot_loads_total 0" in metrics
            assert "snapshot_stale_seconds 0\n" not in metrics
        before = file.stat().st_ino
        revoke_all_but(key, project)
        wait_until(lambda: ask(origin, other) == 401)
        assert ask(origin, key) == 200
        wait_until(lambda: file.stat().st_ino != before)
        running.kill()
    with database_away(), process(tmp_path, port) as (origin, _):
        assert (ask(origin, key), ask(origin, other)) == (200, 401)
    log = (tmp_path / "gateway.log").read_text()
    assert "keys and routes are those that were known" in log
    assert CREDENTIAL not in log


def revoke_all_but(key: str, project: Project) -> None:
    for entry in project.api_keys.exclude(prefix=key[:10]):
        accounts.revoke_api_key(key=entry, actor=ACTOR, now=clock.now())


def test_a_run_that_alternates_between_two_processes_stays_one_run_on_one_target(
    project: Project, upstream: FakeUpstream, store: Environment, tmp_path: Path
) -> None:
    """Two processes of one home and one Redis. One run is played twice, word for word: the second is another run."""
    key = make_key(project)
    use_upstream(project, upstream.origin)
    routing.set_alias(
        name="smart",
        targets=[TargetSetting(upstream="provider", model=model) for model in ("gpt-one", "gpt-two")],
        project=project,
        actor=ACTOR,
        now=clock.now(),
    )
    played = list({json.dumps(run["traj"][:3]): run["traj"] for run in RUNS}.values())[:12]
    runs: dict[str, set[str]] = {}
    with process(tmp_path, free_port()) as (one, _), process(tmp_path, free_port()) as (two, _):
        for trajectory in [played[0], *played]:
            turns = [index for index, message in enumerate(trajectory) if message["role"] == "assistant"][:5]
            assert len(turns) >= 3
            told, targets = [], set()
            for turn, origin in zip(turns, cycle([one, two]), strict=False):
                answer = httpx.post(
                    f"{origin}/v1/chat/completions",
                    headers={"authorization": f"Bearer {key}"},
                    json={"model": "smart", "messages": trajectory[:turn]},
                )
                assert answer.status_code == 200
                told.append(answer.headers["x-ratchet-run-id"])
                targets.add(json.loads(upstream.received[-1].body)["model"])
                run_id = UUID(told[-1]).bytes
                # Telling takes a few milliseconds; a caller on the same machine can be quicker.
                wait_until(lambda run_id=run_id, told=told: stored_values(store).count(run_id) == len(told))
            assert len(set(told)) == len(targets) == 1
            assert told[0] not in runs
            runs[told[0]] = targets
        assert set.union(*runs.values()) == {"gpt-one", "gpt-two"}
        pages = [httpx.get(f"{origin}/metrics").text for origin in (one, two)]
        assert 'run_lookups_total{result="found"} 13' in pages[1]
        assert ['process_info{process="gateway-1"} 1' in page for page in pages] == [True, False]


def stored_values(store: Environment) -> list[Any]:
    client = redis_client(store)
    names: Any = client.keys("ratchet:run:*")
    values: Any = client.mget(names) if names else []
    return list(values)


def test_an_occupied_port_is_one_sentence() -> None:
    with socket.socket() as occupant:
        # As the server itself binds: two of them would share the port without a word.
        occupant.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        occupant.bind(("127.0.0.1", 0))
        occupant.listen()
        port = occupant.getsockname()[1]
        command = [sys.executable, "-m", "gateway", "--port", str(port)]
        second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert second.returncode == 2
    assert second.stderr.startswith(f"The gateway cannot listen on 127.0.0.1:{port}")
    assert second.stderr.count("\n") == 1


def test_a_spool_that_cannot_be_opened_ends_the_process_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("in the way")
    command = [sys.executable, "-m", "gateway", "--port", str(free_port())]
    environment = {**os.environ, "RATCHET_HOME": str(tmp_path)}
    failed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert failed.returncode == 1
    assert "the spool cannot be opened" in failed.stderr


def test_kill_9_loses_nothing_that_was_answered(
    project: Project, upstream: FakeUpstream, tmp_path: Path
) -> None:
    key = make_key(project)
    use_upstream(project, upstream.origin)
    port = free_port()
    answered, accepted = [], []
    for _ in range(2):
        with process(tmp_path, port) as (origin, running):
            with OpenAI(base_url=f"{origin}/v1", api_key=key) as client:
                for _ in range(5):
                    raw = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=OPENING)
                    answered.append(raw.headers["x-ratchet-call-id"])
            body = {"call_id": answered[-1], "name": "resolved", "value": True}
            feedback = httpx.post(
                f"{origin}/v1/feedback", headers={"authorization": f"Bearer {key}"}, json=body
            )
            accepted.append(feedback.json()["id"])
            upstream.behaviour = Behaviour(delay_s=30)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(
                    f"{origin}/v1/chat/completions",
                    headers={"authorization": f"Bearer {key}"},
                    content=json.dumps({"model": "gpt-4o", "messages": OPENING}),
                    timeout=0.1,
                )
            running.kill()
            upstream.behaviour = Behaviour()
    spool = segments(tmp_path / "spool")
    assert {segment.process for segment in spool} == {"gateway-1"}
    assert len({segment.boot for segment in spool}) == 2
    assert all(segment.is_closed() for segment in spool)
    entries = [(segment.boot, entry) for segment in spool for entry in segment.read()]
    for boot in {segment.boot for segment in spool}:
        sequences = [entry.sequence for name, entry in entries if name == boot]
        assert sequences == list(range(len(sequences)))
    records = [entry.record for _, entry in entries]
    begun = [str(record.call_id) for record in records if isinstance(record, BeginRecord)]
    ended = [str(record.call_id) for record in records if isinstance(record, EndRecord)]
    assert set(answered) <= set(ended) <= set(begun)
    assert len(begun) == len(set(begun)) == len(answered) + 2
    assert [str(record.signal_id) for record in records if isinstance(record, SignalRecord)] == accepted
