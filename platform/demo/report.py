"""The demo's report: a file that scripts read and a table that people read, both of the same figures."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

Report = dict[str, Any]
"""As `story.tell` fills it: real_traffic, live_before, training, evaluation, promotion, live_after, rollback_seconds,
audit, lost_calls, seconds. Shares are 0 to 1."""


def write(report: Report, folder: Path) -> Path:
    """Write `report.json` into the folder; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    return path


def table(r: Report) -> Table:
    """The report on one screen."""
    table = Table(title="What happened", show_header=False, title_justify="left")
    low, high = r["evaluation"]["ci95"]
    for name, value in [
        ("Real traffic", f"{r['real_traffic']['calls']} calls, {r['real_traffic']['runs']} runs, "
                         f"{r['real_traffic']['strays']} strays, mean reward {r['real_traffic']['mean_reward']:.2f}"),
        ("Live before", f"{r['live_before']['success']:.1%} of {r['live_before']['runs']} runs resolved"),
        ("Training", f"{r['training']['algorithm']}, {r['training']['steps']} steps, {r['training']['seconds']} s"),
        ("Evaluation", f"{r['evaluation']['champion']:.1%} -> {r['evaluation']['candidate']:.1%} on "
                       f"{r['evaluation']['tasks']} held-out tasks, 95 % interval of the gain "
                       f"[{low:+.1%}, {high:+.1%}]: {r['evaluation']['verdict']}"),
        ("Promotion", f"{r['promotion']['version']}, requested by {r['promotion']['requested_by']}, "
                      f"approved by {r['promotion']['approved_by']}"),
        ("Live after", f"{r['live_after']['success']:.1%} of {r['live_after']['runs']} runs resolved"),
        ("Rollback", f"{r['rollback_seconds']} s"),
        ("Ledger", f"{r['audit']['events']} events, {'verified' if r['audit']['verified'] else 'NOT VERIFIED'}, "
                   f"tampering {'caught' if r['audit']['tamper_detected'] else 'MISSED'}"),
        ("Lost calls", str(r["lost_calls"])),
        ("Time", f"{r['seconds']} s"),
    ]:  # fmt: skip
        table.add_row(name, value)
    return table
