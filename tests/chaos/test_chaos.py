"""The short form of `make chaos`, against the product and against builds that lack what makes capture exactly-once."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.chaos import experiment, faults, oracle, rows
from tests.chaos.oracle import Verdict
from tests.chaos.product import Installation

SEED = 20_251_124


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    # Not pytest's own folder: its path is too long for what the embedded servers keep below it.
    place = Path(tempfile.mkdtemp(prefix="ratchet-chaos-"))
    made = Installation.make(place / "home")
    yield made
    made.delete()
    shutil.rmtree(place)


def run(installation: Installation, folder: Path, *, gateway_wrapper: tuple[str, ...] = ()) -> Verdict:
    known_losses = rows.losses(installation)
    evidence = experiment.run(installation, folder, faults.SHORT, seed=SEED, gateway_wrapper=gateway_wrapper)
    return oracle.judge(evidence, known_losses=known_losses)


def test_nothing_is_lost_doubled_wrong_or_refused(installation: Installation, tmp_path: Path) -> None:
    verdict = run(installation, tmp_path / "sound")
    assert verdict.violations == {kind: [] for kind in oracle.KINDS}
    assert verdict.requests >= faults.SHORT.requests
    assert verdict.outcomes["gateway_died"]
    assert verdict.feedback


def test_a_build_without_begin_records_is_found_out(installation: Installation, tmp_path: Path) -> None:
    wrapper = ("-m", "tests.chaos.late_begin")
    verdict = run(installation, tmp_path / "late-begin", gateway_wrapper=wrapper)
    assert verdict.violations[oracle.LOST]


def test_a_build_without_dedupe_is_found_out(installation: Installation, tmp_path: Path) -> None:
    """Last, because the schema stays as it is then."""
    drop_unique_keys(installation)
    verdict = run(installation, tmp_path / "no-dedupe")
    assert verdict.violations[oracle.DOUBLED]


def drop_unique_keys(installation: Installation) -> None:
    """What ingest's exactly-once rests on when it reads records for a second time: a call is known by its keys. Indexes
    that are not unique take their place, so that nothing else gets slow."""
    with psycopg.connect(installation.env.database_url) as connection:
        keys = connection.execute(
            "SELECT conrelid::regclass::text, conname, substring(pg_get_constraintdef(oid) FROM '\\(.*\\)')"
            " FROM pg_constraint WHERE contype IN ('p', 'u')"
            " AND conrelid IN ('telemetry_call'::regclass, 'telemetry_callbody'::regclass)"
        ).fetchall()
        assert keys
        for table, name, columns in keys:
            connection.execute(f'ALTER TABLE {table} DROP CONSTRAINT "{name}" CASCADE')
            connection.execute(f"CREATE INDEX ON {table} {columns}")
