"""What is published of a benchmark: targets hold or do not, and no gap is silent."""

from dataclasses import replace

import pytest

from tests.benchmarks.gateway_rows import CONNECTIONS, Figures, Kept, Scaling, Soak, grids, rows
from tests.benchmarks.load import Outcome
from tests.benchmarks.publish import Row

KEPT = Kept(sent=1000, incomplete=0, gaps=0, bytes_per_call=2000.4, drained_per_second=20_000)


def figures(name: str, language: str, *, times_slower: float = 1.0) -> Figures:
    outcome = Outcome(
        answered=round(5000 / times_slower),
        seconds=1.0,
        p50_ms=0.2 * times_slower,
        p99_ms=times_slower,
    )
    return Figures(
        name=name,
        language=language,
        closed={
            (is_stream, connections): outcome for is_stream in (False, True) for connections in CONNECTIONS
        },
        added_p50_ms=0.2,
        added_p99_ms=1.0,
        kept_per_second=500.0,
        added_first_byte_ms=0.2,
        cpu_per_chunk_us=30.0,
        memory_mb=90.0,
        sent=1000,
        sampled=10,
        sampled_exact=10,
    )


OURS = figures("Ratchet", "Python")


def failing(*peers: Figures, ours: Figures = OURS, kept: Kept = KEPT, **parts: object) -> list[Row]:
    told = {
        "scaling": Scaling(one_per_second=5000, two_per_second=8000, ceiling=1.8, kept=KEPT),
        "soak": None,
    }
    return [row for row in rows(ours, peers, kept, **{**told, **parts}) if not row.holds]  # type: ignore[arg-type]


def test_everything_holds_when_every_target_is_reached() -> None:
    slow = figures("Slow", "Node", times_slower=4.0)
    assert (
        failing(slow, figures("Quick", "Rust", times_slower=1.0), figures("Relay", "C", times_slower=0.1))
        == []
    )


def test_a_python_or_node_peer_is_beaten_four_times_in_each_figure() -> None:
    peer = figures("Near", "Node", times_slower=4.0)
    peer.closed[True, 8] = replace(peer.closed[True, 8], p99_ms=3.0)
    (row,) = failing(peer)
    assert (row.name, row.value) == ("times ahead of Near (Node), streams; the least, p99 at 8 conn.", 3.0)


def test_a_compiled_peer_may_be_quicker_in_whole_answers_and_not_in_streams() -> None:
    names = [row.name for row in failing(figures("Quick", "Rust", times_slower=0.5))]
    assert names == ["times ahead of Quick (Rust), streams; the least, rate at 1 conn."]


def test_a_peer_that_did_not_start_is_a_row_that_says_so() -> None:
    absent = Figures(name="Absent", language="Node", problem="npm is not installed")
    found = failing(absent)
    assert [row.value for row in found] == [None, None]
    assert all("npm is not installed" in row.name for row in found)
    (line,) = [line for line in grids([OURS, absent])[0].lines if line.problem]
    assert set(line.values) == {None}
    assert all(not row.holds for row in grids([absent])[0].rows())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"added_p50_ms": 0.36}, "added p50"),
        ({"added_p99_ms": 3.1}, "added p99"),
        ({"added_first_byte_ms": 0.6}, "first byte"),
        ({"cpu_per_chunk_us": 51.0}, "processor time"),
        ({"cpu_per_chunk_us": None}, "processor time"),
        ({"memory_mb": 151.0}, "memory"),
        ({"errors": 1}, "wrong answers"),
        ({"sampled_exact": 9}, "differ"),
    ],
)
def test_each_target_can_fail(changes: dict[str, float], name: str) -> None:
    (row,) = failing(ours=replace(OURS, **changes))
    assert name in row.name


def test_a_spool_that_is_not_complete_fails() -> None:
    assert "begin and end" in failing(kept=replace(KEPT, incomplete=1))[0].name
    assert "gaps" in failing(kept=replace(KEPT, gaps=1))[0].name
    assert "ingest" in failing(kept=replace(KEPT, drained_per_second=9999))[0].name


def test_memory_that_grows_over_a_long_run_fails() -> None:
    steady = Soak(
        requests=1_000_000,
        errors=0,
        early_requests=100_000,
        early_memory_mb=100.0,
        late_memory_mb=109.0,
        per_second=4000,
        kept=KEPT,
    )
    assert failing(soak=steady) == []
    (row,) = failing(soak=replace(steady, late_memory_mb=111.0))
    assert (row.name, row.value) == ("growth of memory between these", 11.0)


def test_two_processes_that_did_not_start_are_a_row() -> None:
    (row,) = failing(scaling=None)
    assert row.value is None


def test_wrong_answers_are_the_figures_problem() -> None:
    counted = figures("Wrong", "Rust")
    counted.count(Outcome(sent=5, errors=2, first_error="b'HTTP/1.1 500 a|b'"))
    assert counted.errors == 2
    assert counted.problem == "wrong answers: b'HTTP/1.1 500 a/b'"
    assert not any(row.holds for row in grids([counted])[2].rows())
