"""One measurement goes to the document and to the JSON, whole in both."""

import json
from pathlib import Path

import pytest

from tests.benchmarks import publish as publishing
from tests.benchmarks.publish import Grid, Line, Row, publish

GRID = Grid(
    "whole answers",
    [("1 conn.: rate", "/s"), ("wrong answers", "")],
    [Line("direct", [40_123.4, 0]), Line("Absent", [None, None], "not installed")],
)


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "benchmarks.md"
    file.write_text("before\n<!-- gateway -->\nfigures of last month\n<!-- /gateway -->\nafter\n")
    monkeypatch.setattr(publishing, "DOCUMENT", file)
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))
    return file


def test_a_section_is_replaced_and_the_rest_stays(document: Path) -> None:
    assert publish("gateway", [Row("memory", 84.125, "MB", "<= 150", True)])
    text = document.read_text()
    assert text.startswith("before\n<!-- gateway -->\nMeasured on ")
    assert text.endswith("| memory | 84.125 | MB | <= 150 | yes |\n<!-- /gateway -->\nafter\n")
    assert "last month" not in text


def test_a_grid_is_a_table_in_the_document_and_rows_in_the_json(document: Path) -> None:
    assert not publish("gateway", [Row("memory", 84.0, "MB", "<= 150", True)], [GRID])
    lines = document.read_text().splitlines()
    assert "| whole answers | 1 conn.: rate, /s | wrong answers |" in lines
    assert "| direct | 40,123 | 0 |" in lines
    assert "| Absent: not installed | - | - |" in lines
    rows = json.loads((document.parent / "bench" / "gateway.json").read_text())["rows"]
    assert len(rows) == 1 + 4
    assert rows[1] == {
        "name": "whole answers: direct, 1 conn.: rate",
        "value": 40_123.4,
        "unit": "/s",
        "target": "",
        "holds": True,
    }
    assert rows[3]["name"] == "whole answers: Absent, 1 conn.: rate (not installed)"
    assert rows[3]["value"] is None
    assert not rows[3]["holds"]


def test_a_target_that_is_missed_is_said(document: Path) -> None:
    assert not publish("gateway", [Row("rate", 3999.0, "/s", ">= 4,000", False)])
    assert "| rate | 3,999 | /s | >= 4,000 | NO |" in document.read_text()
