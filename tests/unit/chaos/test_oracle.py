"""The oracle of `make chaos`, on a small world in which everything is right, and on that world with one thing wrong."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.chaos import oracle
from tests.chaos.answers import Behaviour, Plan, reply
from tests.chaos.exchange import Result
from tests.chaos.oracle import compare
from tests.chaos.rows import BodyDigest, CallRow, LossRow, SignalRow, Stored
from tests.chaos.witnesses import Attempt, Feedback, Served, Window, Witnesses


class World:
    """Five calls and one piece of feedback, journals and rows in agreement. Tests spoil it."""

    def __init__(self) -> None:
        self.attempts: dict[str, Attempt] = {}
        self.calls: list[CallRow] = []
        self.bodies: list[BodyDigest] = []
        self.losses: list[LossRow] = []
        self.windows = [Window("Kill", "gateway 1", 100.0, 102.0)]
        self.ask("stream", stream=True)
        self.ask("asked-for-usage", stream=True, usage=True)
        self.ask("refused", Behaviour.RATE_LIMITED, outcome="upstream_error")
        self.ask("cut", Behaviour.DIES_WITHIN, result=Result.CUT, outcome="upstream_cut")
        self.ask("killed", result=Result.LOST, outcome="gateway_died", gateway=1)
        tries = [
            {"gateway": 0, "began": 5.0, "ended": 5.1, "result": "whole", "status": 202, "error_code": ""}
        ]
        self.feedback = {"signal-stream": Feedback("stream", "call-stream", tries)}
        self.signals = [SignalRow("signal", "call-stream", "signal-stream", True)]

    def ask(
        self,
        nonce: str,
        behaviour: Behaviour = Behaviour.FAST,
        *,
        stream: bool = False,
        usage: bool = False,
        result: Result = Result.WHOLE,
        outcome: str = "complete",
        gateway: int = 0,
    ) -> None:
        plan = Plan(nonce, behaviour, stream, usage)
        request = f"request {nonce}".encode()
        serial = f"serial-{nonce}"
        answer = reply(plan, serial, with_usage=True)
        visible = answer.whole if usage else answer.visible
        kept = answer.whole
        if result == Result.CUT:
            visible = kept = answer.pieces[0]
        elif result == Result.LOST:
            visible = kept = b""
        began = 101.0 if result == Result.LOST else 10.0
        attempt = Attempt(plan, gateway, began, _sha256(request), began + 0.1, result)
        attempt.served[serial] = Served(serial, True, len(kept), result == Result.WHOLE)
        if result != Result.LOST:
            attempt.status, attempt.call_id, attempt.serial = answer.status, f"call-{nonce}", serial
            attempt.retry_after = "1" if answer.status >= 400 else ""
            attempt.size_bytes, attempt.sha256 = len(visible), _sha256(visible)
        self.attempts[nonce] = attempt
        number = 2 * len(self.calls)
        at = datetime(2026, 11, 24, tzinfo=UTC)
        status = attempt.status or None
        self.calls.append(
            CallRow(f"call-{nonce}", outcome, status, "gateway-1", "boot", number, serial, False, True, at)
        )
        self.bodies.append(BodyDigest(f"call-{nonce}", _sha256(request), len(kept), _sha256(kept)))

    def change_call(self, nonce: str, **fields: object) -> None:
        self.calls = [replace(row, **fields) if row.id == f"call-{nonce}" else row for row in self.calls]  # type: ignore[arg-type]

    def violations(self) -> dict[str, list[str]]:
        seen = Witnesses(self.attempts, self.feedback, self.windows)
        found = compare(seen, Stored(self.calls, self.bodies, self.signals, self.losses)).violations
        return {kind: sentences for kind, sentences in found.items() if sentences}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _drop_call(world: World, nonce: str) -> None:
    world.calls = [row for row in world.calls if row.id != f"call-{nonce}"]
    world.bodies = [body for body in world.bodies if body.call_id != f"call-{nonce}"]


def _store_twice(world: World) -> None:
    world.calls.append(replace(world.calls[0], id="other", sequence=1))
    world.bodies.append(replace(world.bodies[0], call_id="other"))


def _answered_by_the_gateway(world: World, status: int, code: str) -> None:
    attempt = world.attempts["stream"]
    attempt.status, attempt.error_code, attempt.serial = status, code, ""
    world.change_call("stream", outcome="unreachable", status_code=status)


def _swap_answer(world: World) -> None:
    world.bodies[0] = replace(world.bodies[0], response_sha256=_sha256(b"something else"))


def _show_usage(world: World) -> None:
    answer = reply(world.attempts["stream"].plan, "serial-stream", with_usage=True)
    world.attempts["stream"].size_bytes = len(answer.whole)
    world.attempts["stream"].sha256 = _sha256(answer.whole)


def _end_cleanly(world: World) -> None:
    world.attempts["cut"].result = Result.WHOLE


def _keep_less_than_the_client_got(world: World) -> None:
    piece = reply(world.attempts["cut"].plan, "serial-cut", with_usage=True).pieces[0][:-1]
    world.bodies[3] = replace(world.bodies[3], response_bytes=len(piece), response_sha256=_sha256(piece))


SPOILERS: dict[str, tuple[str, Callable[[World], object]]] = {
    "a call has no row": (oracle.LOST, lambda w: _drop_call(w, "stream")),
    "a call in flight at a kill has no row": (oracle.LOST, lambda w: _drop_call(w, "killed")),
    "a call has no bytes": (oracle.LOST, lambda w: w.bodies.pop()),
    "accepted feedback has no row": (oracle.LOST, lambda w: w.signals.clear()),
    "a gap that nobody explains": (
        oracle.LOST,
        lambda w: w.losses.append(LossRow("p", "b", 3, 4, 2, "missing")),
    ),
    "a gap that ingest did not see": (oracle.LOST, lambda w: w.change_call("killed", sequence=50)),
    "losses without a full disk": (
        oracle.LOST,
        lambda w: w.losses.append(LossRow("p", "b", 3, 4, 2, "write_failed")),
    ),
    "a call has two rows": (oracle.DOUBLED, lambda w: w.calls.append(replace(w.calls[0], sequence=1))),
    "a request has two call ids": (oracle.DOUBLED, _store_twice),
    "a sequence number is used twice": (oracle.DOUBLED, lambda w: w.change_call("killed", sequence=0)),
    "feedback has two rows": (oracle.DOUBLED, lambda w: w.signals.append(replace(w.signals[0], id="other"))),
    "a signal that nobody gave": (
        oracle.DOUBLED,
        lambda w: w.signals.append(SignalRow("other", "call-stream", "never", True)),
    ),
    "a call that nobody made": (
        oracle.WRONG_BYTES,
        lambda w: w.bodies.append(BodyDigest("other", _sha256(b"never sent"), 0, "")),
    ),
    "the stored answer is another one": (oracle.WRONG_BYTES, _swap_answer),
    "a part that is shorter than the client's": (oracle.WRONG_BYTES, _keep_less_than_the_client_got),
    "the client's bytes are others": (
        oracle.WRONG_BYTES,
        lambda w: setattr(w.attempts["stream"], "sha256", _sha256(b"other")),
    ),
    "the hidden usage chunk is shown": (oracle.WRONG_BYTES, _show_usage),
    "a cut answer ends cleanly": (oracle.WRONG_BYTES, _end_cleanly),
    "retry-after is gone": (oracle.WRONG_BYTES, lambda w: setattr(w.attempts["refused"], "retry_after", "")),
    "the status is another one": (
        oracle.WRONG_BYTES,
        lambda w: setattr(w.attempts["refused"], "status", 400),
    ),
    "the gateway fails by itself": (
        oracle.STORE_FAILED,
        lambda w: _answered_by_the_gateway(w, 500, "server_error"),
    ),
    "the gateway forgot its keys": (
        oracle.STORE_FAILED,
        lambda w: _answered_by_the_gateway(w, 503, "starting"),
    ),
    "a connection breaks without a kill": (oracle.STORE_FAILED, lambda w: w.windows.clear()),
    "an answer is cut without a reason": (
        oracle.STORE_FAILED,
        lambda w: setattr(w.attempts["stream"], "result", Result.CUT),
    ),
    "feedback is refused": (
        oracle.STORE_FAILED,
        lambda w: w.feedback["signal-stream"].tries[0].update(status=503),
    ),
    "a cut answer counts as complete": (
        oracle.WRONG_OUTCOME,
        lambda w: w.change_call("cut", outcome="complete"),
    ),
    "a whole answer counts as cut": (
        oracle.WRONG_OUTCOME,
        lambda w: w.change_call("stream", outcome="upstream_cut"),
    ),
    "the stored status is another one": (
        oracle.WRONG_OUTCOME,
        lambda w: w.change_call("stream", status_code=201),
    ),
    "the client was told another id": (
        oracle.WRONG_OUTCOME,
        lambda w: setattr(w.attempts["stream"], "call_id", "x"),
    ),
    "a call has no step": (oracle.UNFINISHED, lambda w: w.change_call("stream", is_stitched=False)),
    "a signal has no run": (
        oracle.UNFINISHED,
        lambda w: w.signals.__setitem__(0, replace(w.signals[0], has_run=False)),
    ),
}


def test_a_world_in_which_everything_is_right_holds() -> None:
    assert World().violations() == {}


@pytest.mark.parametrize("name", SPOILERS)
def test_one_thing_wrong_is_found(name: str) -> None:
    kind, spoil = SPOILERS[name]
    world = World()
    spoil(world)
    assert kind in world.violations()


@pytest.mark.parametrize(("left_s_before", "is_right"), [(0.05, True), (1.0, False)])
def test_a_gateway_that_is_killed_as_its_client_leaves_may_not_have_noticed(
    left_s_before: float, is_right: bool
) -> None:
    world = World()
    world.ask("left", result=Result.LOST, outcome="gateway_died", gateway=1)
    attempt = world.attempts["left"]
    attempt.result = Result.LEFT
    attempt.ended = 100.0 - left_s_before
    attempt.began = attempt.ended - 0.1
    assert bool(world.violations()) != is_right


def test_what_a_full_disk_cost_must_be_counted() -> None:
    world = World()
    world.windows.append(Window("DiskFull", "", 9.0, 11.0))
    _drop_call(world, "stream")
    assert oracle.LOST in world.violations()
    world.losses.append(LossRow("gateway-1", "boot", 0, 1, 2, "write_failed"))
    assert world.violations() == {}


def test_bytes_that_a_full_disk_cost_must_be_counted() -> None:
    world = World()
    world.windows.append(Window("DiskFull", "", 9.0, 11.0))
    world.change_call("stream", is_shed=True)
    del world.bodies[0]
    assert oracle.LOST in world.violations()
    world.losses.append(LossRow("gateway-1", "boot", 0, 1, 2, "body_shed"))
    assert world.violations() == {}
