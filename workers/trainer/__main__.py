"""The trainer process: `python -m workers.trainer train JOB_DIR` or `evaluate DIR`.

Reads one document, writes progress.jsonl and, last, result.json. Exit codes: 0 succeeded; 1 failed, see
result.json; 2 the document or a model file cannot be used as it is, trying again will not help; 143 stopped
by SIGTERM. Has no database, no network, and sends nothing anywhere."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from learning.artifacts import UnsafeArtifact, check_adapter, check_base_model
from workers.trainer.documents import SCHEMA, BadDocument, read_evaluation, read_job, write_result

# Before torch, transformers and datasets are imported: they read these once.
os.environ.update(
    # Threads that wait must sleep, not spin: beside other busy processes on the same cores a training step
    # took 12.8 s with spinning threads and 2.1 s with sleeping ones.
    OMP_WAIT_POLICY="PASSIVE",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    DO_NOT_TRACK="1",
    TOKENIZERS_PARALLELISM="false",
    TRL_EXPERIMENTAL_SILENCE="1",
)


class Stopped(BaseException):
    """SIGTERM arrived. Not an Exception, so that no library swallows it."""


def main(arguments: list[str]) -> int:
    """Run one command and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers.trainer", description=__doc__)
    parser.add_argument("command", choices=["train", "evaluate"])
    parser.add_argument("folder", type=Path, help="the folder with job.json or evaluation.json")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    if not folder.is_dir():
        parser.error(f"no such folder: {folder}")
    signal.signal(signal.SIGTERM, _stop)
    (folder / "result.json").unlink(missing_ok=True)
    common: dict[str, Any] = {"schema": SCHEMA}
    try:
        result = _train(folder, common) if options.command == "train" else _evaluate(folder)
    except (BadDocument, UnsafeArtifact) as error:
        return _fail(folder, common, error, 2)
    except Stopped:
        return _fail(folder, common, Stopped("stopped by SIGTERM before the end"), 143)
    except Exception as error:
        # The one handler of this process: whatever went wrong must reach the product as a result.
        traceback.print_exc()
        return _fail(folder, common, error, 1)
    write_result(folder, {**common, **result, "error": None})
    return 0


def _train(folder: Path, common: dict[str, Any]) -> dict[str, Any]:
    job = read_job(folder)
    common |= {"algorithm": job.algorithm, "seed": job.seed}
    check_base_model(job.base_model)
    # Imported after every check: what cannot be carried out is refused at once, without waiting for torch.
    from workers.trainer import grpo

    return grpo.train(job, folder)


def _evaluate(folder: Path) -> dict[str, Any]:
    document = read_evaluation(folder)
    check_base_model(document.base_model)
    for arm in document.arms:
        if arm.adapter is not None:
            check_adapter(arm.adapter)
    from workers.trainer import evaluation

    return evaluation.evaluate(document, folder)


def _fail(folder: Path, common: dict[str, Any], error: BaseException, code: int) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the result is being written; the process ends right after
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    described = {"type": type(error).__name__, "message": str(error)}
    write_result(folder, {**common, "status": "failed", "error": described})
    return code


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise Stopped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
