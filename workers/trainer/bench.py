"""Does the loop learn? `python -m workers.trainer.bench --seeds 3` trains on the shipped base model, once per
seed and once with shuffled rewards, and measures each candidate against the base on held-out tasks.

Goes through the trainer's own commands, so what is timed is what the product runs."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from learning.environments.registry import get_environment
from learning.evaluation.bootstrap import paired_bootstrap
from learning.rewards.spec import SUPPORT_DESK

BASE_MODEL = Path(__file__).parents[2] / "deploy" / "models" / "support-desk-base"
TRAIN_TASKS = 800
HELDOUT_TASKS = 300


@dataclass(frozen=True)
class Row:
    """One training job and what it brought. Success rates are shares of the held-out tasks, 0 to 1."""

    seed: int
    shuffled: bool
    base_success: float
    candidate_success: float
    difference: float
    ci95: tuple[float, float]
    base_risk: float
    candidate_risk: float
    train_seconds: float
    evaluate_seconds: float


def run(seeds: Sequence[int], out_dir: Path, *, config: dict[str, Any] | None = None) -> list[Row]:
    """Train and evaluate once per seed, then the shuffled control with the first seed.

    Args:
        seeds: One job each.
        out_dir: Where the job folders go.
        config: Knobs of `JobConfig` that differ from their defaults.

    Raises:
        RuntimeError: a job or an evaluation failed; the message is its own.
    """
    plan = [(seed, False) for seed in seeds] + [(seeds[0], True)]
    rows = []
    for number, (seed, shuffled) in enumerate(plan, start=1):
        label = f"seed {seed}{', shuffled rewards' if shuffled else ''}"
        print(f"[{number}/{len(plan)}] {label}", flush=True)
        row = _row(out_dir / f"seed-{seed}{'-shuffled' if shuffled else ''}", seed, shuffled, config or {})
        low, high = row.ci95
        print(
            f"    {row.base_success:.1%} -> {row.candidate_success:.1%}: {row.difference:+.1%} "
            f"[{low:+.1%}, {high:+.1%}], {row.train_seconds:.0f} s + {row.evaluate_seconds:.0f} s",
            flush=True,
        )
        rows.append(row)
    return rows


def _row(folder: Path, seed: int, shuffled: bool, config: dict[str, Any]) -> Row:
    environment = get_environment("support_desk")
    common: dict[str, Any] = {
        "schema": 1,
        "base_model": str(BASE_MODEL),
        "environment": environment.name,
        "reward_spec": SUPPORT_DESK.to_dict(),
        "seed": seed,
    }
    job = {
        **common,
        "job_id": folder.name,
        "algorithm": "grpo",
        "tasks": environment.task_ids("train", TRAIN_TASKS),
        "config": config,
        "shuffle_rewards": shuffled,
    }
    trained = _command("train", folder / "job", "job.json", job)
    arms: list[dict[str, Any]] = [
        {"name": "champion", "adapter": None},
        {"name": "candidate", "adapter": str((folder / "job" / trained["adapter_dir"]).resolve())},
    ]
    tasks = environment.task_ids("heldout", HELDOUT_TASKS)
    evaluation = {**common, "evaluation_id": folder.name, "arms": arms, "tasks": tasks}
    measured = _command("evaluate", folder / "evaluation", "evaluation.json", evaluation)
    champion, candidate = (measured["arms"][arm["name"]] for arm in arms)
    successes = [[float(result["success"]) for result in arm] for arm in (champion, candidate)]
    interval = paired_bootstrap(*successes)
    return Row(
        seed=seed,
        shuffled=shuffled,
        base_success=_mean(successes[0]),
        candidate_success=_mean(successes[1]),
        difference=interval.mean,
        ci95=(interval.low, interval.high),
        base_risk=_mean([result["risk"] for result in champion]),
        candidate_risk=_mean([result["risk"] for result in candidate]),
        train_seconds=trained["seconds"],
        evaluate_seconds=measured["seconds"],
    )


def _command(command: str, folder: Path, name: str, document: dict[str, Any]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(document))
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.trainer", command, str(folder)], stdout=log, stderr=log
        )
        _show_progress(process, folder / "progress.jsonl")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    if result["status"] != "succeeded":
        raise RuntimeError(f"{command} failed: {result['error']['message']}")
    return result


def _show_progress(process: subprocess.Popen[bytes], path: Path) -> None:
    while True:
        try:
            process.wait(timeout=10)
            return
        except subprocess.TimeoutExpired:
            lines = path.read_text().splitlines() if path.exists() else []
        if lines:
            line = json.loads(lines[-1])
            print(
                f"    {line['step']}/{line['steps']} success {line['success']:.2f}, "
                f"{line['time_left_s']:.0f} s left",
                flush=True,
            )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m workers.trainer.bench", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 on")
    parser.add_argument("--out", type=Path, help="folder for jobs and rows.json; default: a temporary one")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="ratchet-bench-"))
    rows = run(range(options.seeds), out)
    (out / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(f"rows: {out / 'rows.json'}")
