"""The spool keeps what was appended, in order, through torn tails, damage, a full quota and a killed writer."""

import asyncio
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry import records
from telemetry.records import BeginRecord, EndRecord, LossRecord, Record, Served, SignalRecord, UnknownRecord
from telemetry.shedding import Level, Shed
from telemetry.spool import MAX_PENDING_LOSSES, Entry, Segment, Spool, SpoolBroken, SpoolFull, segments


def begin(request: bytes = b"{}", *, dialect: str = "chat") -> BeginRecord:
    return BeginRecord(
        call_id=uuid4(),
        project_id=uuid4(),
        api_key_id=uuid4(),
        started_at=1_795_255_200_000_000,
        dialect=dialect,
        method="POST",
        path="/v1/chat/completions",
        run_hint=uuid4(),
        prefix_hash=b"\x00" * 32,
        parent_hashes=(b"\x01" * 32, b"\xff" * 32),
        request=request,
    )


def end(call: BeginRecord, response: bytes = b"") -> EndRecord:
    return EndRecord(call_id=call.call_id, outcome="complete", ended_at=3, response=response)


def signal(value: object = True) -> SignalRecord:
    return SignalRecord(
        signal_id=uuid4(),
        project_id=uuid4(),
        api_key_id=uuid4(),
        target_type="run_id",
        target="r",
        name="n",
        value=value,
        observed_at=1,
        received_at=2,
    )


def read(folder: Path) -> list[Entry]:
    return [entry for segment in segments(folder) for entry in segment.read()]


def three_records(folder: Path) -> tuple[Segment, list[int]]:
    """A closed segment, and where each of its records ends."""
    spool, ends = Spool(folder), []
    for _ in range(3):
        spool.append(begin(b"x" * 500))
        ends.append(spool.position[1])
    spool.close()
    return segments(folder)[0], ends


def kept(folder: Path) -> list[Record]:
    return [entry.record for entry in read(folder)]


@given(
    st.binary(),
    st.text(),
    st.one_of(st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
)
def test_records_survive_the_trip(body: bytes, name: str, value: object) -> None:
    name = name.encode("utf-8", "ignore").decode()
    value = value.encode("utf-8", "ignore").decode() if isinstance(value, str) else value
    opened = begin(body)
    served = Served(model_served=name, model_version_id=uuid4(), is_canary=True)
    ended = replace(
        end(opened, body),
        echo_hash=body,
        response_id=name,
        served=served,
        hidden=("usage",),
        upstream_id=uuid4(),
    )
    for record in (opened, ended, signal(value)):
        assert records.decode(*records.encode(record)) == record


def test_fields_of_a_newer_version_are_dropped_and_newer_kinds_are_refused() -> None:
    kind, header, body = records.encode(signal())
    assert records.decode(kind, header[:-1] + b',"later":1}', body).name == "n"  # type: ignore[union-attr]
    with pytest.raises(UnknownRecord):
        records.decode(99, header, body)
    with pytest.raises(UnknownRecord):
        records.decode(kind, b"{}", body)


def test_what_is_appended_is_read_back_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    written: list[Record] = [begin(b"\n\x00" * 50), signal(), begin()]
    assert [spool.append(record) for record in written] == [0, 1, 2]
    entries = read(tmp_path)
    assert [entry.record for entry in entries] == written
    assert [entry.sequence for entry in entries] == [0, 1, 2]
    (segment,) = segments(tmp_path)
    assert list(segment.read(entries[0].end_offset)) == entries[1:]
    assert spool.position == (0, entries[2].end_offset)
    spool.close()


def test_segments_rotate_and_close(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=2000)
    for _ in range(10):
        spool.append(begin(b"x" * 500))
    spool.synced().result(5)
    found = segments(tmp_path)
    assert [segment.number for segment in found] == list(range(len(found)))
    assert len(found) > 3
    assert [segment.is_closed() for segment in found] == [True] * (len(found) - 1) + [False]
    assert [entry.sequence for entry in read(tmp_path)] == list(range(10))
    spool.close()
    assert found[-1].is_closed()
    found[0].remove()
    found[0].remove()
    assert segments(tmp_path) == found[1:]


def test_a_record_larger_than_a_segment_has_one_of_its_own(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=1000)
    for size in (10, 5000, 10):
        spool.append(begin(b"x" * size))
    assert [len(record.request) for record in kept(tmp_path) if isinstance(record, BeginRecord)] == [
        10,
        5000,
        10,
    ]
    spool.close()


def test_two_writers_never_share_a_name_and_a_name_is_taken_up_again(tmp_path: Path) -> None:
    first, second = Spool(tmp_path), Spool(tmp_path)
    assert (first.process, second.process) == ("gateway-1", "gateway-2")
    first.close()
    third = Spool(tmp_path)
    assert third.process == "gateway-1"
    assert third.boot > first.boot
    second.close()
    third.close()


@pytest.mark.parametrize("cut", [1, 5, 8, 9, 30, 300])
def test_a_torn_tail_ends_the_reading(tmp_path: Path, cut: int) -> None:
    spool = Spool(tmp_path)
    for _ in range(3):
        spool.append(begin(b"x" * 500))
    spool.close()
    (segment,) = segments(tmp_path)
    whole = segment.path.read_bytes()
    segment.path.write_bytes(whole[:-cut])
    assert [entry.sequence for entry in segment.read()] == [0, 1]
    segment.path.write_bytes(whole + b"\x00" * 100)
    assert [entry.sequence for entry in segment.read()] == [0, 1, 2]


def test_a_damaged_record_is_passed_over_and_its_number_is_missing(tmp_path: Path) -> None:
    segment, ends = three_records(tmp_path)
    damaged = bytearray(segment.path.read_bytes())
    damaged[ends[1] - 100] ^= 1
    segment.path.write_bytes(damaged)
    assert [(entry.sequence, entry.is_after_damage) for entry in segment.read()] == [(0, False), (2, True)]
    damaged[-100] ^= 1
    segment.path.write_bytes(damaged)
    assert [entry.end_offset for entry in segment.read()] == [ends[0]]


@pytest.mark.parametrize("length", [0, 5, 600, 5000, 2**32 - 1])
def test_a_damaged_length_costs_its_own_record_only(tmp_path: Path, length: int) -> None:
    segment, ends = three_records(tmp_path)
    damaged = bytearray(segment.path.read_bytes())
    damaged[ends[0] : ends[0] + 4] = length.to_bytes(4, "big")
    segment.path.write_bytes(damaged)
    assert [entry.sequence for entry in segment.read(is_closed=True)] == [0, 2]


def test_a_hole_of_zeros_or_an_overwritten_block_is_passed_over(tmp_path: Path) -> None:
    segment, ends = three_records(tmp_path)
    whole = segment.path.read_bytes()
    segment.path.write_bytes(whole[: ends[0]] + bytes(ends[1] - ends[0]) + whole[ends[1] :])
    assert [entry.sequence for entry in segment.read(is_closed=True)] == [0, 2]
    noise = b'{"' * (3 << 19)
    segment.path.write_bytes(whole[: ends[0]] + noise + whole[ends[1] :])
    assert [entry.sequence for entry in segment.read(is_closed=True)] == [0, 2]


def test_a_frame_whose_rest_may_still_come_is_waited_for(tmp_path: Path) -> None:
    """Bytes behind it look like a frame, because the customer's body holds one."""
    spool = Spool(tmp_path)
    inner, _ = three_records(tmp_path / "inner")
    spool.append(begin(inner.path.read_bytes()))
    spool.close()
    segment = segments(tmp_path)[0]
    whole = segment.path.read_bytes()
    segment.path.write_bytes(whole[:-1])
    assert list(segment.read()) == []
    segment.path.write_bytes(whole)
    assert [entry.sequence for entry in segment.read()] == [0]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_full_spool_loses_loudly_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=1200, max_bytes=6000)
    sequences, lost = [], 0
    while lost < 3:
        try:
            sequences.append(spool.append(begin(b"x" * 500)))
        except SpoolFull:
            lost += 1
    assert spool.losses == 3
    wait_until(lambda: any(isinstance(record, LossRecord) for record in kept(tmp_path)))
    assert not spool.is_writable
    for segment in segments(tmp_path):
        if segment.is_closed():
            segment.remove()
    wait_until(lambda: spool.is_writable)
    after = spool.append(begin())
    *_, latest = kept(tmp_path)
    (loss,) = [r for r in kept(tmp_path) if isinstance(r, LossRecord) and r.reason == Shed.FULL]
    assert (loss.first_sequence, loss.last_sequence, loss.reason) == (
        sequences[-1] + 1,
        sequences[-1] + 3,
        Shed.FULL,
    )
    assert isinstance(latest, BeginRecord)
    assert after == read(tmp_path)[-1].sequence
    spool.close()


def test_near_the_quota_bodies_go_first_then_pass_through_then_new_calls(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each step is counted, said once, and told by a record; the ends of calls on record are the last to go."""
    spool = Spool(tmp_path, max_bytes=40_000)
    body = b"x" * 500

    def fill(level: Level) -> None:
        while spool.level < level:
            spool.append(signal("y" * 200))

    opened = begin(body)
    spool.append(opened)
    fill(Level.BODIES)
    assert spool.is_writable
    cut = [begin(body), end(opened, body)]
    for record in cut:
        spool.append(record)
    spool.append(begin(b"", dialect=""))
    fill(Level.PASS_THROUGH)
    passing = begin(b"", dialect="")
    for record in (passing, end(passing)):
        with pytest.raises(SpoolFull):
            spool.append(record)
    late = begin(body)
    spool.append(late)
    fill(Level.NEW_CALLS)
    assert not spool.is_writable
    refused = begin()
    for record in (refused, end(refused)):
        with pytest.raises(SpoolFull):
            spool.append(record)
    spool.append(end(late, body))
    with pytest.raises(SpoolFull):  # noqa: PT012 - which of them is refused depends on sizes
        while True:
            spool.append(signal("y" * 200))
    counts = dict(spool.shed)
    spool.close()

    assert counts == {Shed.BODY: 4, Shed.PASS_THROUGH: 2, Shed.FULL: 3, Shed.WRITE_FAILED: 0}
    assert spool.losses == 5
    assert [line.getMessage().rpartition(": ")[2] for line in caplog.records] == [
        "bodies",
        "pass through",
        "new calls",
        "everything",
    ]
    entries = {entry.sequence: entry.record for entry in read(tmp_path)}
    shed = [record for record in entries.values() if getattr(record, "is_shed", False)]
    assert shed == [
        replace(cut[0], request=b"", is_shed=True),
        replace(cut[1], response=b"", is_shed=True),
        replace(late, request=b"", is_shed=True),
        replace(end(late), is_shed=True),
    ]
    told = [record for record in entries.values() if isinstance(record, LossRecord)]
    assert sum(record.count for record in told if record.reason == Shed.BODY) == 4
    lost = [
        number
        for record in told
        if record.reason != Shed.BODY
        for number in range(record.first_sequence, record.last_sequence + 1)
    ]
    assert sorted(lost) == sorted(set(range(max(entries) + 1)) - set(entries))


def test_a_full_disk_still_takes_a_call_without_its_body(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    real_write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(
            "telemetry.spool.os.write", lambda file, data: real_write(file, data[: min(len(data), 1000)])
        )
        spool.append(begin(b"x" * 5000))
    spool.close()
    record, told = kept(tmp_path)
    assert isinstance(record, BeginRecord)
    assert (record.request, record.is_shed) == (b"", True)
    assert isinstance(told, LossRecord)
    assert told.reason == Shed.BODY


def refuse_to_write(file: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, "no space left on device")


def test_very_many_ranges_of_lost_records_are_told_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telemetry.spool.HOUSEKEEPING_INTERVAL_S", 3600.0)
    spool = Spool(tmp_path, max_bytes=4 << 20)
    while spool.level < Level.PASS_THROUGH:
        spool.append(signal("y" * 20_000))
    for _ in range(500):
        with pytest.raises(SpoolFull):
            spool.append(begin(dialect=""))
        spool.append(signal())
    spool.close()
    told = [record for record in kept(tmp_path) if isinstance(record, LossRecord)]
    assert sum(record.count for record in told) == 500
    assert len(told) == MAX_PENDING_LOSSES * 2  # as many at once as at the end


def test_what_was_lost_is_told_before_the_next_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a process killed right behind that record leaves no gap without a reason."""
    monkeypatch.setattr("telemetry.spool.HOUSEKEEPING_INTERVAL_S", 3600.0)
    spool = Spool(tmp_path)
    spool.append(begin())
    with monkeypatch.context() as patch:
        patch.setattr("telemetry.spool.os.write", refuse_to_write)
        for _ in range(3):
            with pytest.raises(SpoolBroken):
                spool.append(signal())
    assert not spool.is_writable
    assert spool.append(begin()) == 5
    assert spool.is_writable
    _, told, latest = read(tmp_path)
    assert isinstance(told.record, LossRecord)
    assert (told.sequence, told.record.reason) == (4, Shed.WRITE_FAILED)
    assert (told.record.first_sequence, told.record.last_sequence) == (1, 3)
    assert latest.sequence == 5
    spool.close()


def test_a_disk_that_takes_half_a_record_keeps_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.append(begin())
    real_write = os.write
    with monkeypatch.context() as patch:
        patch.setattr("telemetry.spool.os.write", lambda file, data: real_write(file, data[: len(data) // 2]))
        with pytest.raises(SpoolBroken) as raised:
            spool.append(begin())
    assert raised.value.errno == errno.ENOSPC
    spool.append(begin())
    spool.close()
    assert sorted(type(record).__name__ for record in kept(tmp_path)) == [
        "BeginRecord",
        "BeginRecord",
        "LossRecord",
    ]
    assert sorted(entry.sequence for entry in read(tmp_path)) == [0, 2, 3]


def test_a_disk_that_refuses_to_sync_fails_those_who_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    spool = Spool(tmp_path)
    spool.append(signal())
    spool.synced().result(5)
    with monkeypatch.context() as patch:
        patch.setattr("telemetry.spool.os.fsync", refuse)
        with pytest.raises(SpoolBroken):
            spool.synced().result(5)
    spool.synced().result(5)
    spool.close()


def test_a_thread_that_cannot_sync_says_so_once_and_finds_by_itself_that_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path)
    real_sync = os.fsync

    def break_down(file: int) -> None:
        if str(tmp_path) not in os.readlink(f"/proc/self/fd/{file}"):
            real_sync(file)
        else:
            raise ValueError("nobody thought of this")

    with monkeypatch.context() as patch:
        patch.setattr("telemetry.spool.os.fsync", break_down)
        spool.append(signal())
        with pytest.raises(SpoolBroken, match="nobody thought of this"):
            spool.synced().result(5)
        wait_until(lambda: spool.sync_failures >= 2)
        assert spool.sync_problem == "nobody thought of this"
    wait_until(lambda: not spool.sync_problem)
    assert [line.levelname for line in caplog.records] == ["ERROR", "WARNING"]
    spool.synced().result(5)
    spool.close()


def test_a_thread_that_cannot_wait_goes_on_syncing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen under a bent clock."""

    def refuse(timeout_s: float) -> None:
        raise OSError(errno.EINVAL, "invalid argument")

    spool = Spool(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(spool._urgent, "wait", refuse)
        for _ in range(3):
            spool.append(signal())
            spool.synced().result(5)
        wait_until(lambda: "invalid argument" in spool.sync_problem)
    wait_until(lambda: not spool.sync_problem)
    spool.close()


def test_many_wait_for_one_fsync_and_none_can_cancel_it_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    may_sync = threading.Event()
    real_sync = os.fsync

    def sync(file: int) -> None:
        may_sync.wait(5)
        syncs.append(file)
        real_sync(file)

    spool = Spool(tmp_path)
    monkeypatch.setattr("telemetry.spool.os.fsync", sync)
    spool.append(signal())
    wait_until(lambda: not spool._is_dirty)  # an fsync is under way; who asks now needs the next one

    async def wait_together() -> None:
        waiting = [asyncio.wrap_future(spool.synced()) for _ in range(1000)]
        waiting[0].cancel()
        may_sync.set()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in done] == [asyncio.CancelledError] + [type(None)] * 999

    asyncio.run(wait_together())
    assert len(syncs) == 2
    spool.synced().result(5)
    spool.close()


WRITER = """
import sys
from pathlib import Path
from uuid import uuid4
from telemetry.records import SignalRecord
from telemetry.spool import Spool
spool = Spool(Path(sys.argv[1]), segment_bytes=50_000)
number = 0
while True:
    spool.append(SignalRecord(signal_id=uuid4(), project_id=uuid4(), api_key_id=uuid4(), target_type="run_id",
        target="r", name="n", value="x" * 1000, observed_at=number, received_at=0))
    print(number, flush=True)
    number += 1
"""


def test_kill_9_keeps_every_record_that_append_returned_for(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= 300:
                writer.kill()
                break
        printed = [300, *(int(line) for line in writer.stdout if line.endswith("\n"))]
    entries = read(tmp_path)
    assert [entry.sequence for entry in entries] == list(range(len(entries)))
    assert len(entries) > max(printed)
    assert all(segment.is_closed() for segment in segments(tmp_path))
