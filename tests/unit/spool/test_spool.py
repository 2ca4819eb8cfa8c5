"""The spool keeps what was appended, in order, through torn tails, damage, a full quota and a killed writer."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry import records
from telemetry.records import BeginRecord, EndRecord, LossRecord, Record, SignalRecord, UnknownRecord
from telemetry.spool import Entry, Spool, SpoolBroken, SpoolFull, segments


def begin(request: bytes = b"{}") -> BeginRecord:
    return BeginRecord(
        call_id=uuid4(),
        project_id=uuid4(),
        api_key_id=uuid4(),
        started_at=1_795_255_200_000_000,
        dialect="chat",
        method="POST",
        path="/v1/chat/completions",
        run_hint=uuid4(),
        prefix_hash=b"\x00" * 32,
        parent_hashes=(b"\x01" * 32, b"\xff" * 32),
        request=request,
    )


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
    end = EndRecord(
        call_id=uuid4(), outcome="complete", ended_at=3, response=body, echo_hash=body, response_id=name
    )
    for record in (begin(body), end, signal(value)):
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
    spool = Spool(tmp_path)
    ends = []
    for _ in range(3):
        spool.append(begin(b"x" * 500))
        ends.append(spool.position[1])
    spool.close()
    (segment,) = segments(tmp_path)
    damaged = bytearray(segment.path.read_bytes())
    damaged[ends[1] - 100] ^= 1
    segment.path.write_bytes(damaged)
    assert [entry.sequence for entry in segment.read()] == [0, 2]
    damaged[-100] ^= 1
    segment.path.write_bytes(damaged)
    assert [entry.end_offset for entry in segment.read()] == [ends[0]]


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
    loss, latest = kept(tmp_path)[-2:]
    assert isinstance(loss, LossRecord)
    assert (loss.first_sequence, loss.last_sequence, loss.reason) == (
        sequences[-1] + 1,
        sequences[-1] + 3,
        "spool_full",
    )
    assert isinstance(latest, BeginRecord)
    assert after == loss.last_sequence + 2
    spool.close()


def test_losses_around_a_small_record_that_fitted_are_told_apart(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=3000)
    outcomes = []
    for size in (3000, 10, 3000, 3000):
        try:
            outcomes.append(spool.append(begin(b"x" * size)))
        except SpoolFull:
            outcomes.append(-1)
    spool.close()
    assert outcomes == [-1, 1, -1, -1]
    ranges = [(r.first_sequence, r.last_sequence) for r in kept(tmp_path) if isinstance(r, LossRecord)]
    assert ranges == [(0, 0), (2, 3)]


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
