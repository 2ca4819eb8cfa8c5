"""Where the outcome goes: the screen, the table in docs/conformance.md, `bench/conformance.json` in the home."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks.publish import Row, machine
from tests.conformance.agent_runs import Finding
from tests.conformance.openai_python.suite import Comparison

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
MOST_NAMED = 40
"""Differing tests that are named; a broken gateway fails thousands."""


def rows(comparison: Comparison, findings: Sequence[Finding]) -> list[Row]:
    """Every figure, with what it should be."""
    named = comparison.of_named_files()
    found = [
        *_suite_rows("named files", named, all_must_pass=True),
        *_suite_rows("all files", comparison, all_must_pass=False),
    ]
    for finding in findings:
        agent = finding.agent
        target = f"{agent.calls} captured{', one run' if agent.shows_history else ''}; all as directly"
        found.append(Row(agent.name, finding.calls, "calls", target, not finding.faults))
    return found


def _suite_rows(files: str, comparison: Comparison, *, all_must_pass: bool) -> list[Row]:
    direct, through = comparison.passed(comparison.direct), comparison.passed(comparison.through)
    asked, differing = comparison.asked, len(comparison.differing)
    target = f"all of {asked}" if all_must_pass else f"as directly, {direct} of {asked}"
    wanted = asked if all_must_pass else direct
    return [
        Row(
            f"OpenAI's tests, {files}: pass directly",
            direct,
            "tests",
            "",
            not all_must_pass or direct == asked,
        ),
        Row(
            f"OpenAI's tests, {files}: pass through the gateway", through, "tests", target, through == wanted
        ),
        Row(f"OpenAI's tests, {files}: answers compared", comparison.answers, "answers", "", True),
        Row(f"OpenAI's tests, {files}: another end or answer", differing, "tests", "0", differing == 0),
    ]


def publish(comparison: Comparison, findings: Sequence[Finding], *, home: Path, is_complete: bool) -> bool:
    """Tell the outcome; True when all is as it should be. What is not complete is shown, and not written down."""
    table = rows(comparison, findings)
    lines = ["| what | measured | unit | target | holds |", "|---|---|---|---|---|"]
    lines += [
        f"| {r.name} | {r.value:g} | {r.unit} | {r.target} | {'yes' if r.holds else 'NO'} |" for r in table
    ]
    print("\n" + "\n".join(lines))
    for test in comparison.differing[:MOST_NAMED]:
        print(f"differs: {test}")
        for label, outcomes in (("directly", comparison.direct), ("through", comparison.through)):
            print(f"  {label}: {outcomes.get(test)}")
    for finding in findings:
        for fault in finding.faults:
            print(f"{finding.agent.name}: {fault}")
    if is_complete:
        _write(table, "\n".join(lines), home)
    return all(row.holds for row in table)


def _write(table: Sequence[Row], lines: str, home: Path) -> None:
    section = f"<!-- conformance -->\nMeasured on {machine()}, by `make conformance`.\n\n{lines}\n<!-- /conformance -->"
    text, count = re.subn(
        r"<!-- conformance -->.*?<!-- /conformance -->",
        lambda _: section,
        DOCUMENT.read_text(),
        flags=re.DOTALL,
    )
    if count != 1:
        raise SystemExit(f"{DOCUMENT} has no section for its table")
    DOCUMENT.write_text(text)
    folder = home / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"part": "conformance", "machine": machine(), "rows": [asdict(row) for row in table]}
    (folder / "conformance.json").write_text(json.dumps(content, indent=2) + "\n")
