"""The documents that pass between the product and the trainer process: job.json and evaluation.json in,
progress.jsonl and result.json out. Parsed once, here, into types; unknown keys are refused by name. Imports
no torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from learning.environments.base import Environment, UnknownTask
from learning.environments.registry import UnknownEnvironment, get_environment
from learning.rewards.fields import InvalidRewardSpec
from learning.rewards.spec import RewardSpec

SCHEMA = 1
_ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class BadDocument(ValueError):
    """A job or evaluation that cannot be carried out as written; the message is one sentence that names the
    field."""


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """The knobs of a GRPO job. The defaults are measured on the support desk and the shipped base model."""

    steps: int = 70
    """Optimizer steps, each on fresh rollouts."""
    prompts_per_step: int = 8
    """Different tasks in a step."""
    generations: int = 8
    """Rollouts of each task; rewards are compared within them."""
    learning_rate: float = 6e-4
    """Of the LoRA weights. Suits the shipped model, which is tiny; about 1e-5 for pretrained models."""
    lora_rank: int = 16
    lora_alpha: int = 32
    temperature: float = 1.0
    kl_weight: float = 0.0
    """Pull towards the base model (GRPO's beta)."""
    max_completion_tokens: int = 160
    """Of one rollout, tool results included."""
    max_tool_turns: int = 6
    """Model calls that may ask for tools, in one rollout."""
    threads: int = 2
    """CPU threads."""


_LIMITS: dict[str, tuple[float, float]] = {
    "steps": (1, 100_000), "prompts_per_step": (1, 4096), "generations": (2, 256), "learning_rate": (1e-9, 1),
    "lora_rank": (1, 512), "lora_alpha": (1, 4096), "temperature": (0.05, 5), "kl_weight": (0, 10),
    "max_completion_tokens": (8, 1_000_000), "max_tool_turns": (1, 1000), "threads": (1, 256),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training job, validated."""

    job_id: str
    algorithm: str
    base_model: Path
    environment: Environment
    tasks: tuple[str, ...]
    reward_spec: RewardSpec
    config: JobConfig
    seed: int
    shuffle_rewards: bool


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One contender of an evaluation; `adapter` None is the base model itself."""

    name: str
    adapter: Path | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation, validated: every arm plays the same tasks with the same random numbers."""

    evaluation_id: str
    base_model: Path
    arms: tuple[Arm, ...]
    environment: Environment
    tasks: tuple[str, ...]
    reward_spec: RewardSpec
    seed: int


def read_job(folder: Path) -> Job:
    """Read JOB_DIR/job.json.

    Raises:
        BadDocument: missing, not JSON, or not a job that can be carried out.
    """
    document = _load(folder / "job.json")
    _known(document, "job.json", {field.name for field in fields(Job)} | {"schema", "environment_digest"})
    if document.get("algorithm") != "grpo":
        raise BadDocument(f"algorithm: {document.get('algorithm')!r} is not known; known: grpo")
    environment = _environment(document)
    return Job(
        job_id=_text(document, "job_id"),
        algorithm="grpo",
        base_model=_path(folder, _text(document, "base_model")),
        environment=environment,
        tasks=_tasks(document, environment),
        reward_spec=_reward_spec(document),
        config=parse_config(document.get("config", {})),
        seed=_integer(document, "seed"),
        shuffle_rewards=_flag(document, "shuffle_rewards"),
    )


def read_evaluation(folder: Path) -> Evaluation:
    """Read DIR/evaluation.json.

    Raises:
        BadDocument: missing, not JSON, or not an evaluation that can be carried out.
    """
    document = _load(folder / "evaluation.json")
    known = {field.name for field in fields(Evaluation)} | {"schema", "environment_digest"}
    _known(document, "evaluation.json", known)
    environment = _environment(document)
    return Evaluation(
        evaluation_id=_text(document, "evaluation_id"),
        base_model=_path(folder, _text(document, "base_model")),
        arms=_arms(folder, document.get("arms")),
        environment=environment,
        tasks=_tasks(document, environment),
        reward_spec=_reward_spec(document),
        seed=_integer(document, "seed"),
    )


def parse_config(document: object) -> JobConfig:
    """A dict -> JobConfig; absent knobs take their defaults.

    Raises:
        BadDocument: an unknown knob, a wrong type, or a value out of range.
    """
    if not isinstance(document, dict):
        raise BadDocument("config: must be an object")
    kinds = {name: type(default) for name, default in asdict(JobConfig()).items()}
    _known(document, "config", set(kinds))
    values: dict[str, Any] = {}
    for name, value in document.items():
        low, high = _LIMITS[name]
        whole = kinds[name] is int
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise BadDocument(
                f"config.{name}: must be {'a whole number' if whole else 'a number'}, got {value!r}"
            )
        if not low <= value <= high:
            raise BadDocument(f"config.{name}: must be between {low:g} and {high:g}, got {value!r}")
        values[name] = kinds[name](value)
    return JobConfig(**values)


class Progress:
    """progress.jsonl, one JSON line a step, flushed at once so that a reader sees it."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "progress.jsonl").open("w", encoding="utf-8")

    def write(self, line: Mapping[str, object]) -> None:
        """Append one line."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """No more lines."""
        self._file.close()


def write_result(folder: Path, result: Mapping[str, object]) -> None:
    """Write result.json: whole or not at all, even if the machine stops halfway."""
    temporary = folder / f".result.json.{os.getpid()}"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(result, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / "result.json")


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadDocument(f"{path.name}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadDocument(f"{path.name}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadDocument(f"{path.name}: must be an object")
    if document.get("schema") != SCHEMA:
        raise BadDocument(f"schema: must be {SCHEMA}, got {document.get('schema')!r}")
    return document


def _known(document: dict[str, Any], where: str, names: set[str]) -> None:
    unknown = sorted(set(document) - names)
    if unknown:
        raise BadDocument(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(names))}")


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value:
        raise BadDocument(f"{key}: must be text, got {value!r}")
    return value


def _integer(document: dict[str, Any], key: str) -> int:
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise BadDocument(f"{key}: must be a whole number from 0 to 2^31-1, got {value!r}")
    return value


def _flag(document: dict[str, Any], key: str) -> bool:
    value = document.get(key, False)
    if not isinstance(value, bool):
        raise BadDocument(f"{key}: must be true or false, got {value!r}")
    return value


def _path(folder: Path, text: str) -> Path:
    return (folder / text).resolve()


def _environment(document: dict[str, Any]) -> Environment:
    try:
        environment = get_environment(_text(document, "environment"))
    except UnknownEnvironment as error:
        raise BadDocument(f"environment: {error}") from error
    wanted = document.get("environment_digest")
    if wanted is not None and wanted != environment.digest:
        raise BadDocument(
            f"environment_digest: {wanted!r} was asked for, this installation has {environment.digest}"
        )
    return environment


def _tasks(document: dict[str, Any], environment: Environment) -> tuple[str, ...]:
    tasks = document.get("tasks")
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, str) for task in tasks):
        raise BadDocument("tasks: must be a list of at least one task id")
    for task in tasks:
        try:
            environment.rollout(task)
        except UnknownTask as error:
            raise BadDocument(f"tasks: {error}") from error
    return tuple(tasks)


def _reward_spec(document: dict[str, Any]) -> RewardSpec:
    try:
        spec = RewardSpec.parse(document.get("reward_spec"))
        spec.check_own_terms()
    except InvalidRewardSpec as error:
        raise BadDocument(f"reward_spec.{error}") from error
    return spec


def _arms(folder: Path, document: object) -> tuple[Arm, ...]:
    if not isinstance(document, list) or not document:
        raise BadDocument("arms: must be a list of at least one arm")
    arms = []
    for entry in document:
        if not isinstance(entry, dict):
            raise BadDocument("arms: every arm must be an object")
        _known(entry, "arms", {"name", "adapter"})
        name, adapter = _text(entry, "name"), entry.get("adapter")
        if not _ARM_NAME.fullmatch(name):
            raise BadDocument(f"arms: {name!r} is no name; letters, digits, dot, dash and underscore only")
        if adapter is not None and not isinstance(adapter, str):
            raise BadDocument(f"arms: the adapter of {name!r} must be a path or null")
        arms.append(Arm(name=name, adapter=None if adapter is None else _path(folder, adapter)))
    if len({arm.name for arm in arms}) < len(arms):
        raise BadDocument("arms: names must differ")
    return tuple(arms)
