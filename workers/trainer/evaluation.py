"""Plays every arm of an evaluation on the same tasks with the same random numbers, many tasks at a time.

Gives raw results per task; what they mean (intervals, gates) is `learning.evaluation`'s."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from learning.environments.base import Rollout
from learning.rewards.facts import Facts
from learning.rewards.scoring import score
from learning.rewards.spec import RewardSpec
from learning.rewards.steps import steps_from_messages
from workers.policy_server import answers
from workers.policy_server.engine import Engine, Generation, Sampling, prompt_ids
from workers.policy_server.lora import Adapter
from workers.trainer.documents import Evaluation, Progress

MAX_TURNS = 8
MAX_ANSWER_TOKENS = 64
BATCH = 300
THREADS = 2


def evaluate(evaluation: Evaluation, folder: Path) -> dict[str, Any]:
    """Play all arms and return result.json's content.

    Raises:
        UnsafeArtifact: the base model or an adapter is missing, pickled, or does not fit.
    """
    started = time.monotonic()
    torch.set_num_threads(THREADS)
    engine = Engine(evaluation.base_model)
    adapters = {
        arm.name: None if arm.adapter is None else engine.adapters.read(arm.adapter)
        for arm in evaluation.arms
    }
    progress = Progress(folder)
    total, done = len(evaluation.arms) * len(evaluation.tasks), 0
    arms: dict[str, list[dict[str, Any]]] = {}
    for name, adapter in adapters.items():
        arms[name] = []
        for start in range(0, len(evaluation.tasks), BATCH):
            tasks = evaluation.tasks[start : start + BATCH]
            arms[name] += play(engine, adapter, evaluation, tasks)
            done += len(tasks)
            elapsed = time.monotonic() - started
            progress.write(
                {
                    "step": done,
                    "steps": total,
                    "arm": name,
                    "success": sum(row["success"] for row in arms[name]) / len(arms[name]),
                    "seconds": round(elapsed, 2),
                    "time_left_s": round(elapsed / done * (total - done), 1),
                }
            )
    progress.close()
    return {"status": "succeeded", "seconds": round(time.monotonic() - started, 3), "arms": arms}


def play(
    engine: Engine, adapter: Adapter | None, evaluation: Evaluation, tasks: tuple[str, ...]
) -> list[dict[str, Any]]:
    """One arm on these tasks, all at once, a turn at a time."""
    rollouts = [evaluation.environment.rollout(task) for task in tasks]
    playing = list(rollouts)
    for turn in range(MAX_TURNS):
        generations = [_generation(engine, adapter, rollout, evaluation.seed, turn) for rollout in playing]
        engine.generate(generations)
        playing = [r for r, g in zip(playing, generations, strict=True) if _take_turn(engine, r, g)]
        if not playing:
            break
    return [_row(evaluation.reward_spec, rollout) for rollout in rollouts]


def _generation(
    engine: Engine, adapter: Adapter | None, rollout: Rollout, seed: int, turn: int
) -> Generation:
    prompt = prompt_ids(engine.tokenizer, rollout.messages, rollout.tools)
    room = engine.max_length - len(prompt)
    # Paired: the random numbers depend on the task and the turn, not on the arm.
    return Generation(
        prompt=prompt,
        adapter=adapter,
        sampling=Sampling(
            max_tokens=max(1, min(MAX_ANSWER_TOKENS, room)), seed=f"{seed}:{rollout.task_id}:{turn}"
        ),
    )


def _take_turn(engine: Engine, rollout: Rollout, generation: Generation) -> bool:
    """Append the answer and the tools' results; False if that was the last turn."""
    text = engine.tokenizer.decode([t.id for t in generation.tokens], skip_special_tokens=True)
    answer = answers.parse(text)
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    rollout.messages.append(message)
    if not answer.tool_calls or generation.finish_reason != "stop":
        return False
    message["tool_calls"] = [
        {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in answer.tool_calls
    ]
    for call in answer.tool_calls:
        result = rollout.call(call.name, call.arguments)
        rollout.messages.append({"role": "tool", "name": call.name, "content": result})
    return True


def _row(spec: RewardSpec, rollout: Rollout) -> dict[str, Any]:
    outcome = rollout.outcome
    steps = steps_from_messages(rollout.messages, tools=rollout.tools)
    return {
        "task_id": rollout.task_id,
        "success": outcome.success,
        "reward": score(spec, Facts.of(outcome.signals(), steps)).total,
        "risk": outcome.risk,
        "model_calls": sum(step.model_calls for step in steps),
        "tool_calls": sum(step.tool_calls for step in steps),
        "malformed": sum(step.malformed for step in steps),
        "answer_kind": outcome.answer_kind,
    }
