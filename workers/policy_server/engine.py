"""The decode loop: many sequences at once, each with its own adapter, sampling and random numbers.

Sequences join and leave between steps (continuous batching), left-padded, over one KV cache. A sequence's
tokens do not depend on its neighbours, up to the rounding of matrix products of another size. Not
thread-safe: one thread steps it. Knows nothing of HTTP, chats or tools."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from learning.artifacts import check_base_model
from workers.policy_server.lora import Adapter, RowAdapters


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn. Temperature 0 takes the most likely one."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int
    seed: int | str | None = None
    top_logprobs: int | None = None
    """How many alternatives to report per token; None reports no log-probabilities at all."""
    banned: tuple[int, ...] = ()
    """Token ids that may not be drawn."""


@dataclass(frozen=True)
class Token:
    """One drawn token. Log-probabilities are natural logarithms."""

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Generation:
    """One answer in the making. The loop appends to `tokens`; anyone may set `cancelled`."""

    prompt: list[int]
    adapter: Adapter | None
    sampling: Sampling
    stop: Callable[[Token], bool] = lambda _token: False
    """Called with each token as it is drawn; True ends the answer with it."""
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.random = random.Random(self.sampling.seed)


class Engine:
    """A base model in float32 with its tokenizer, and the batch that it is decoding."""

    def __init__(self, base: Path, *, processed_logprobs: bool = False) -> None:
        """Load a base model.

        Args:
            base: Folder with safetensors weights and tokenizer.
            processed_logprobs: Report log-probabilities after temperature and top-p (what sampling used)
                instead of the model's own.

        Raises:
            UnsafeArtifact: the folder is not a plain safetensors model.
        """
        check_base_model(base)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base, local_files_only=True)
        # bfloat16 matrix products are many times slower on most CPUs than float32 ones.
        model: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        self.model: Any = model.eval()
        self.max_length: int = self.model.config.max_position_embeddings
        self.adapters = RowAdapters(self.model)
        self.vocabulary: int = self.model.config.vocab_size
        self._processed = processed_logprobs
        self._ends = {int(t) for t in _as_list(self.model.generation_config.eos_token_id)}
        self._rows: list[Generation] = []
        self._cache = DynamicCache()
        self._mask = torch.zeros(0, 0, dtype=torch.long)

    @property
    def active(self) -> int:
        """How many sequences are being decoded."""
        return len(self._rows)

    @torch.inference_mode()
    def step(self, joining: Sequence[Generation] = ()) -> None:
        """Draw one token for every sequence, new ones included; finished ones leave."""
        if joining:
            self._admit(joining)
        elif self._rows:
            self._decode()

    def generate(self, sequences: Sequence[Generation]) -> None:
        """Decode these to their ends."""
        self.step(sequences)
        while self._rows:
            self.step()

    def reset(self) -> None:
        """Forget the batch, after an error that left it in an unknown state."""
        self._rows = []
        self._cache, self._mask = DynamicCache(), torch.zeros(0, 0, dtype=torch.long)

    def _admit(self, joining: Sequence[Generation]) -> None:
        """Read the prompts, draw their first tokens, and join their cache to the others'."""
        width = max(len(s.prompt) for s in joining)
        ids = torch.tensor([[0] * (width - len(s.prompt)) + s.prompt for s in joining])
        mask = torch.tensor([[0] * (width - len(s.prompt)) + [1] * len(s.prompt) for s in joining])
        cache = DynamicCache()
        logits = self._forward(joining, ids, mask, cache)
        self._rows = [*self._rows, *joining]
        others = self._mask.shape[0]
        if others:
            cache = _join(self._cache, cache)
            length = max(self._mask.shape[1], width)
            mask = torch.cat([_pad_left(self._mask, length), _pad_left(mask, length)])
        self._cache, self._mask = cache, mask
        self._draw(logits, self._rows[others:])
        self._leave()

    def _decode(self) -> None:
        last = torch.tensor([[s.tokens[-1].id] for s in self._rows])
        self._mask = torch.cat([self._mask, torch.ones(len(self._rows), 1, dtype=torch.long)], dim=1)
        logits = self._forward(self._rows, last, self._mask, self._cache)
        self._draw(logits, self._rows)
        self._leave()

    def _forward(
        self, rows: Sequence[Generation], ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache
    ) -> torch.Tensor:
        """(B, T) ids -> (B, V) logits of the next token. The mask is over cache and ids together."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with self.adapters.use([s.adapter for s in rows]):
            logits: torch.Tensor = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        return logits

    def _draw(self, logits: torch.Tensor, rows: Sequence[Generation]) -> None:
        for i, s in enumerate(rows):
            if s.sampling.banned:
                logits[i, list(s.sampling.banned)] = -torch.inf
        temperature = torch.tensor([[s.sampling.temperature or 1.0] for s in rows])
        top_p = torch.tensor([[s.sampling.top_p] for s in rows])
        processed = logits / temperature
        if bool((top_p < 1).any()):
            processed = _nucleus(processed, top_p)
        # Inverse of the cumulative distribution: one random number a sequence from its own generator,
        # whatever the batch.
        cumulative = processed.softmax(-1).cumsum(-1)
        points = torch.tensor([[s.random.random()] for s in rows]) * cumulative[:, -1:]
        sampled = torch.searchsorted(cumulative, points, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
        greedy = torch.tensor([s.sampling.temperature == 0 for s in rows])
        chosen = torch.where(greedy, logits.argmax(-1), sampled)
        wanted = max(
            (s.sampling.top_logprobs for s in rows if s.sampling.top_logprobs is not None), default=None
        )
        if wanted is not None:
            logprobs = (processed if self._processed else logits).log_softmax(-1)
            own = logprobs.gather(1, chosen[:, None]).squeeze(1).tolist()
            best, best_ids = (t.tolist() for t in logprobs.topk(max(wanted, 1), dim=-1))
        for i, (s, token_id) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            if s.sampling.top_logprobs is None or wanted is None:
                token = Token(token_id, None)
            else:
                n = s.sampling.top_logprobs
                token = Token(token_id, own[i], tuple(zip(best_ids[i][:n], best[i][:n], strict=True)))
            s.tokens.append(token)
            if token_id in self._ends or s.stop(token):
                s.finish_reason = "stop"
            elif len(s.tokens) >= s.sampling.max_tokens:
                s.finish_reason = "length"

    def _leave(self) -> None:
        for s in self._rows:
            if s.cancelled and s.finish_reason is None:
                s.finish_reason = "abort"
        staying = [i for i, s in enumerate(self._rows) if s.finish_reason is None]
        if len(staying) == len(self._rows):
            return
        self._rows = [self._rows[i] for i in staying]
        if not staying:
            self._cache, self._mask = DynamicCache(), torch.zeros(0, 0, dtype=torch.long)
            return
        keep = torch.tensor(staying)
        self._mask = self._mask[keep]
        # Columns that only departed sequences used would otherwise be computed for ever.
        first = int(self._mask.any(dim=0).int().argmax())
        self._mask = self._mask[:, first:]
        cache = DynamicCache()
        for i, (keys, values) in enumerate(_layers(self._cache)):
            cache.update(keys[keep, :, first:], values[keep, :, first:], i)
        self._cache = cache


def prompt_ids(tokenizer: Any, messages: list[dict[str, Any]], tools: list[Any] | None) -> list[int]:
    """Chat messages -> the prompt's token ids, ready for the assistant's turn. String arguments of tool calls
    are fine.

    Raises:
        jinja2.TemplateError: the template does not accept these messages.
    """
    ids: list[int] = tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, return_dict=False
    )
    return ids


def _join(a: DynamicCache, b: DynamicCache) -> DynamicCache:
    """Two caches (B1, H, T1, D) and (B2, H, T2, D) -> one (B1 + B2, H, max(T1, T2), D), padded on the
    left."""
    joined = DynamicCache()
    for i, ((xk, xv), (yk, yv)) in enumerate(zip(_layers(a), _layers(b), strict=True)):
        length = max(xk.shape[2], yk.shape[2])
        keys = torch.cat([_pad_left(xk, length, dim=2), _pad_left(yk, length, dim=2)])
        values = torch.cat([_pad_left(xv, length, dim=2), _pad_left(yv, length, dim=2)])
        joined.update(keys, values, i)
    return joined


def _pad_left(x: torch.Tensor, length: int, dim: int = 1) -> torch.Tensor:
    shape = list(x.shape)
    shape[dim] = length - shape[dim]
    return torch.cat([x.new_zeros(shape), x], dim=dim) if shape[dim] else x


def _nucleus(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Keep the fewest tokens whose probabilities reach top_p; the most likely one always stays."""
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    return logits.masked_fill(
        torch.zeros_like(before >= top_p).scatter(1, order, before >= top_p), -torch.inf
    )


def _layers(cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer. Models with layers of another kind (linear attention) are not served."""
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def _as_list(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]
