"""`make bench-learning`: does the trainer teach, in every seed, and does it teach nothing when rewards are shuffled?"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.publish import Row, publish
from workers.trainer import bench


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    home = Path(os.environ.get("RATCHET_HOME", ".ratchet")) / "bench"
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as folder:
        results = bench.run(range(options.seeds), Path(folder))
    rows = []
    for result in results:
        low, high = (round(100 * end, 1) for end in result.ci95)
        name = f"seed {result.seed}{', shuffled rewards' if result.shuffled else ''}"
        gain = round(100 * result.difference, 1)
        rows.append(Row(f"{name}: base success", round(100 * result.base_success, 1), "%", "30 to 50", True))
        rows.append(
            Row(f"{name}: candidate success", round(100 * result.candidate_success, 1), "%", "", True)
        )
        if result.shuffled:
            rows.append(
                Row(f"{name}: gain [{low}, {high}]", gain, "points", "no gain: lower end <= 0", low <= 0)
            )
        else:
            rows.append(Row(f"{name}: gain [{low}, {high}]", gain, "points", ">= 20", gain >= 20))
            rows.append(Row(f"{name}: lower end of the 95 % interval", low, "points", "> 10", low > 10))
        rows.append(Row(f"{name}: training", round(result.train_seconds, 1), "s", "", True))
        rows.append(Row(f"{name}: evaluation", round(result.evaluate_seconds, 1), "s", "", True))
    return 0 if publish("learning", rows) else 1


if __name__ == "__main__":
    sys.exit(main())
