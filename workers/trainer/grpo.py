"""On-policy GRPO in an environment, with TRL and PEFT: rollouts are sampled from the policy being trained,
scored by the job's reward spec, and only the LoRA adapter learns. Decides nothing about when to train or
whether the result is any good."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets.arrow_dataset import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from learning.artifacts import CONFIG_FILE, check_adapter, directory_digest
from learning.rewards.facts import Facts
from learning.rewards.scoring import PARTS, Score, score
from learning.rewards.spec import RewardSpec
from learning.rewards.steps import steps_from_messages
from workers.trainer.documents import Job, JobConfig, Progress

LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "safetensors")


def train(job: Job, folder: Path) -> dict[str, Any]:
    """Train the job's adapter into folder/adapter; return result.json's content. Trusts its base model."""
    started = time.monotonic()
    torch.set_num_threads(job.config.threads)
    adapter, scratch = folder / "adapter", folder / "scratch"
    shutil.rmtree(adapter, ignore_errors=True)  # of an earlier attempt that was cut off
    lora, arguments = to_trl(job.config, scratch, seed=job.seed)
    model: Any = AutoModelForCausalLM.from_pretrained(
        job.base_model, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    tokenizer = AutoTokenizer.from_pretrained(job.base_model, local_files_only=True)
    base_sha256 = directory_digest(job.base_model)
    factory: Any = job.environment.factory
    progress = Progress(folder)
    callback = _ProgressCallback(progress, job.config.steps, started)
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=_dataset(job),
        reward_funcs=_reward_function(job),
        environment_factory=factory,
        peft_config=lora,
        args=arguments,
        callbacks=[callback],
    )
    trainer.train()
    progress.close()
    save_adapter(trainer.model, adapter)
    shutil.rmtree(scratch, ignore_errors=True)
    return {
        "status": "succeeded",
        "steps": int(trainer.state.global_step),
        "seconds": round(time.monotonic() - started, 3),
        "adapter_dir": adapter.name,
        "adapter_sha256": directory_digest(adapter),
        "base_sha256": base_sha256,
        "metrics": callback.last,
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def to_trl(config: JobConfig, scratch: Path, *, seed: int) -> tuple[LoraConfig, GRPOConfig]:
    """The one place where a job's knobs become TRL's and PEFT's."""
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",  # leaves lm_head out, which TRL requires
        task_type="CAUSAL_LM",
    )
    arguments = GRPOConfig(
        output_dir=str(scratch),
        max_steps=config.steps,
        per_device_train_batch_size=config.prompts_per_step * config.generations,
        num_generations=config.generations,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        temperature=config.temperature,
        beta=config.kl_weight,
        loss_type="dr_grpo",
        scale_rewards="none",
        max_completion_length=config.max_completion_tokens,
        max_tool_calling_iterations=config.max_tool_turns,
        mask_truncated_completions=False,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    return lora, arguments


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter as two files, free of this machine's paths, so that equal weights give equal
    digests."""
    model.save_pretrained(folder, safe_serialization=True)
    for extra in folder.glob("*.md"):
        extra.unlink()
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["base_model_name_or_path"] = Path(config["base_model_name_or_path"]).name
    config["target_modules"] = sorted(
        config["target_modules"]
    )  # PEFT writes a set, in another order each time
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    check_adapter(folder)


def _dataset(job: Job) -> Dataset:
    """Enough rows for all steps, in an order of the job's seed; tasks come again only when all have been
    used."""
    rng = random.Random(job.seed)
    wanted = job.config.steps * job.config.prompts_per_step
    tasks: list[str] = []
    while len(tasks) < wanted:
        tasks += rng.sample(job.tasks, len(job.tasks))
    return Dataset.from_list(
        [{"prompt": job.environment.prompt(), "task_id": task} for task in tasks[:wanted]]
    )


def _reward_function(job: Job) -> Callable[..., list[float | None]]:
    shuffler = random.Random(job.seed)

    def reward(
        *,
        completions: list[Any],
        environments: list[Any],
        log_metric: Callable[[str, float], None],
        **_: object,
    ) -> list[float | None]:
        scores = [
            _score(job.reward_spec, completion, environment.outcome.signals(), job.environment.tools)
            for completion, environment in zip(completions, environments, strict=True)
        ]
        for name in PARTS:
            log_metric(f"parts/{name}", _mean([s.parts.get(name, 0.0) for s in scores]))
        outcomes = [environment.outcome for environment in environments]
        log_metric("success", _mean([float(o.success) for o in outcomes]))
        log_metric("risk", _mean([o.risk for o in outcomes]))
        log_metric("model_calls", _mean([len(s.steps) for s in scores]))
        totals = [s.total for s in scores]
        if job.shuffle_rewards:
            # The negative control: the same rewards, given to the wrong rollouts. Nothing may be learnt from
            # them.
            shuffler.shuffle(totals)
        return totals

    return reward


def _score(spec: RewardSpec, completion: Sequence[Any], signals: dict[str, Any], tools: list[Any]) -> Score:
    return score(spec, Facts.of(signals, steps_from_messages(completion, tools=tools)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class _ProgressCallback(TrainerCallback):
    """Turns TRL's log of each step into a line of progress.jsonl."""

    def __init__(self, progress: Progress, steps: int, started: float) -> None:
        self.last: dict[str, float] = {}
        self._progress, self._steps, self._started = progress, steps, started
        self._first_step = time.monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._first_step = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "reward" not in logs:
            return
        step = state.global_step
        elapsed = time.monotonic() - self._first_step
        line = {
            "reward": logs["reward"],
            **{f"reward_{name}": logs[f"parts/{name}"] for name in PARTS},
            "success": logs["success"],
            "risk": logs["risk"],
            "model_calls": logs["model_calls"],
            "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm", math.nan),
            "entropy": logs.get("entropy", math.nan),
            "kl": logs.get("kl", math.nan),
            "completion_tokens": logs["completions/mean_length"],
            "zero_variance_groups": logs["frac_reward_zero_std"],
        }
        # NaN is not JSON: what TRL did not measure is left out.
        self.last = {name: round(float(value), 6) for name, value in line.items() if math.isfinite(value)}
        self._progress.write(
            {
                "step": step,
                "steps": self._steps,
                **self.last,
                "seconds": round(time.monotonic() - self._started, 2),
                "time_left_s": round(elapsed / step * (self._steps - step), 1),
            }
        )
