"""Where a benchmark's rows go: the screen, the tables in docs/benchmarks.md, a JSON file in the home."""

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
    value: float | None
    """None: it could not be measured; `name` says why."""
    unit: str
    target: str
    holds: bool


@dataclass(frozen=True)
class Line:
    """One of the things that a grid compares."""

    name: str
    values: Sequence[float | None]
    """One for each column."""
    problem: str = ""
    """Why its figures are missing or do not count."""


@dataclass(frozen=True)
class Grid:
    """Many figures of the same kinds, without targets: a table of lines and columns, rows in the JSON."""

    title: str
    columns: Sequence[tuple[str, str]]
    """Name and unit of each figure."""
    lines: Sequence[Line]

    def rows(self) -> list[Row]:
        return [
            Row(
                f"{self.title}: {line.name}, {column}" + (f" ({line.problem})" if line.problem else ""),
                value,
                unit,
                "",
                not line.problem,
            )
            for line in self.lines
            for (column, unit), value in zip(self.columns, line.values, strict=True)
        ]

    def table(self) -> list[str]:
        heads = [f"{column}, {unit}" if unit else column for column, unit in self.columns]
        table = [f"| {self.title} | " + " | ".join(heads) + " |", "|---" + "|---:" * len(heads) + "|"]
        for line in self.lines:
            name = f"{line.name}: {line.problem}" if line.problem else line.name
            table.append(f"| {name} | " + " | ".join(map(_number, line.values)) + " |")
        return table


def machine() -> str:
    """The processor and its cores, in words."""
    info = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.+)", info)
    return f"{os.cpu_count()} cores, {name[1] if name else platform.machine()}"


def show(rows: Sequence[Row], grids: Sequence[Grid] = ()) -> str:
    """Print the tables; returns them."""
    table = ["| what | measured | unit | target | holds |", "|---|---|---|---|---|"]
    table += [
        f"| {r.name} | {_number(r.value)} | {r.unit} | {r.target} | {'yes' if r.holds else 'NO'} |"
        for r in rows
    ]
    for grid in grids:
        table += ["", *grid.table()]
    text = "\n".join(table)
    print(f"\n{text}")
    return text


def publish(part: str, rows: Sequence[Row], grids: Sequence[Grid] = (), *, command: str = "") -> bool:
    """Print the tables, refresh their section of the document, write the JSON; True when every target holds.

    `command` makes the figures; `make bench-<part>` where none is given."""
    tables = show(rows, grids)
    rows = [*rows, *(row for grid in grids for row in grid.rows())]
    section = (
        f"<!-- {part} -->\nMeasured on {machine()}, by `{command or f'make bench-{part}'}`.\n\n"
        f"{tables}\n<!-- /{part} -->"
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


def _number(value: float | None) -> str:
    """At most three decimals, and none that say nothing."""
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}".rstrip("0").rstrip(".")
