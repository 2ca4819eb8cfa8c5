"""Where a benchmark's rows go: the screen, the table in docs/benchmarks.md, a JSON file in the home."""

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Row:
    """One measured figure and what it should reach."""

    name: str
    value: float
    unit: str
    target: str
    holds: bool


def machine() -> str:
    """The processor and its cores, in words."""
    info = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.+)", info)
    return f"{os.cpu_count()} cores, {name[1] if name else platform.machine()}"


def publish(part: str, rows: Sequence[Row], *, command: str = "") -> bool:
    """Print the table, refresh its section of the document, write the JSON; True when every target holds.

    `command` makes the figures; `make bench-<part>` where none is given."""
    table = ["| what | measured | unit | target | holds |", "|---|---|---|---|---|"]
    table += [
        f"| {r.name} | {r.value:g} | {r.unit} | {r.target} | {'yes' if r.holds else 'NO'} |" for r in rows
    ]
    print("\n" + "\n".join(table))
    section = (
        f"<!-- {part} -->\nMeasured on {machine()}, by `{command or f'make bench-{part}'}`.\n\n"
        + "\n".join(table)
        + f"\n<!-- /{part} -->"
    )
    text = DOCUMENT.read_text()
    text, count = re.subn(rf"<!-- {part} -->.*?<!-- /{part} -->", lambda _: section, text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{DOCUMENT} has no section for {part}")
    DOCUMENT.write_text(text)
    folder = Path(os.environ.get("RATCHET_HOME", ".ratchet")) / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"part": part, "machine": machine(), "rows": [asdict(row) for row in rows]}
    (folder / f"{part}.json").write_text(json.dumps(content, indent=2) + "\n")
    return all(row.holds for row in rows)
