"""Builds the shipped base model from nothing: `python -m workers.trainer.base_model OUT`.

A Qwen3-config model of 0.9M parameters, taught the support desk's skills on clean scripted episodes, then its
careless habits on noisy ones, until it succeeds on 30 to 50 % of held-out tasks at temperature 1. Then it is
frozen: it stands for the model in production. Reproducible from `SEED` on one machine and library set. How
text becomes tokens is `chat_format`'s."""

from __future__ import annotations

import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from learning.environments.registry import get_environment
from workers.trainer import chat_format, scripted

SEED = 7
BATCH = 64
CLEAN_STEPS = 500
CARELESS_STEPS = 200
PEAK_LEARNING_RATE = 2e-3
TRAIN_TASKS = 200_000
IGNORED = -100
_BARE: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
    tokenizer_object=Tokenizer(models.BPE()), chat_template=chat_format.CHAT_TEMPLATE
)


def build(out: Path, *, clean_steps: int = CLEAN_STEPS, careless_steps: int = CARELESS_STEPS) -> None:
    """Train tokenizer and model, and write them to `out` as safetensors and JSON."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    sample = [_play(rng, scripted.CARELESS if i % 2 else scripted.CLEAN) for i in range(4000)]
    rare = [scripted.GIVE_UP] * 1000  # one token, or the rare excuse would be the longest answer to wait for
    tokenizer = chat_format.train_tokenizer([*rare, *(_render(messages) for messages in sample)])
    model = Qwen3ForCausalLM(_config(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    _teach(model, tokenizer, rng, scripted.CLEAN, clean_steps, PEAK_LEARNING_RATE)
    _teach(model, tokenizer, rng, scripted.CARELESS, careless_steps, PEAK_LEARNING_RATE / 4)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    trained: Any = model
    trained.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )


def _play(rng: random.Random, habits: scripted.Habits) -> list[dict[str, Any]]:
    number = rng.randrange(TRAIN_TASKS)
    (task_id,) = get_environment("support_desk").task_ids("train", 1, start=number)
    return scripted.play(task_id, habits, rng)


def _render(messages: list[dict[str, Any]]) -> str:
    # The tokenizer does not exist yet when its own corpus is rendered: a bare one carries the template.
    text: str = _BARE.apply_chat_template(messages, tokenize=False)
    return text


def _teach(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    habits: scripted.Habits,
    steps: int,
    peak: float,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.01, betas=(0.9, 0.98))
    started = time.monotonic()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / 50)
            group["lr"] = peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        ids, mask, labels = _batch(tokenizer, [_play(rng, habits) for _ in range(BATCH)])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49 or step + 1 == steps:
            print(
                f"step {step + 1}/{steps} loss {loss.item():.3f} {time.monotonic() - started:.0f}s",
                flush=True,
            )


def _batch(
    tokenizer: PreTrainedTokenizerFast, chats: list[list[dict[str, Any]]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded (B, T) ids, attention mask, and labels that count the assistant's tokens only."""
    rows: Any = tokenizer.apply_chat_template(chats, return_dict=True, return_assistant_tokens_mask=True)
    width = max(len(row) for row in rows["input_ids"])
    ids = torch.full((len(chats), width), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for i, (row, assistant) in enumerate(zip(rows["input_ids"], rows["assistant_masks"], strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        labels[i, : len(row)] = torch.where(torch.tensor(assistant).bool(), torch.tensor(row), IGNORED)
    return ids, mask, labels


if __name__ == "__main__":
    torch.set_num_threads(2)
    build(Path(sys.argv[1]))
