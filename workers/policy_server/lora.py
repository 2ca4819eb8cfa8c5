"""LoRA adapters applied per row of a batch, so that one forward pass answers requests for different adapters.

PEFT trains adapters and writes the files; this reads them. PEFT can mix adapters in a batch too
(`adapter_names`), but hooks every layer anew on each forward pass, which doubles the cost of a small model's
step. Loaded adapters are never changed, so one can be added or dropped while others answer. What may be
loaded at all is decided in `learning.artifacts`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from learning.artifacts import CONFIG_FILE, WEIGHTS_FILE, UnsafeArtifact, check_adapter

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LowRank:
    """One layer's update: y += (x @ A^T) @ B^T, with the scaling folded into B. A is (r, in), B is (out,
    r)."""

    a: torch.Tensor
    b: torch.Tensor


Adapter = dict[str, LowRank]
"""The updates by the name of the linear layer that they belong to."""


class AdapterLinear(nn.Module):
    """A linear layer that adds each row's own adapter. Rows are grouped by `RowAdapters.use`."""

    def __init__(self, base: nn.Linear, name: str, rows: RowAdapters) -> None:
        super().__init__()
        self.base, self.name, self.rows = base, name, rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, in) -> (B, T, out)."""
        y: torch.Tensor = self.base(x)
        for adapter, rows in self.rows.groups:
            update = adapter.get(self.name)
            if update is None:
                continue
            if rows is None:
                y = y + (x @ update.a.T) @ update.b.T
            else:
                y[rows] += (x[rows] @ update.a.T) @ update.b.T
        return y


class RowAdapters:
    """Which adapter each row of the forward pass under way uses."""

    def __init__(self, model: nn.Module) -> None:
        self.groups: list[tuple[Adapter, torch.Tensor | None]] = []
        self.shapes: dict[str, tuple[int, int]] = {}
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and not name.endswith("lm_head"):
                parent, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(parent), attribute, AdapterLinear(module, name, self))
                self.shapes[name] = (module.out_features, module.in_features)

    @contextmanager
    def use(self, rows: Sequence[Adapter | None]) -> Iterator[None]:
        """Within this context row i of every batch uses `rows[i]`; None is the base model as it is."""
        indexes: dict[int, list[int]] = {}
        for i, adapter in enumerate(rows):
            if adapter is not None:
                indexes.setdefault(id(adapter), []).append(i)
        self.groups = [
            (rows_adapter, None if len(members) == len(rows) else torch.tensor(members))
            for members in indexes.values()
            if (rows_adapter := rows[members[0]]) is not None
        ]
        try:
            yield
        finally:
            self.groups = []

    def read(self, folder: Path) -> Adapter:
        """An adapter folder as PEFT writes it -> an adapter that fits this model.

        Raises:
            UnsafeArtifact: pickled, not LoRA, or it does not fit this base model.
        """
        check_adapter(folder)
        config = json.loads((folder / CONFIG_FILE).read_text())
        if config.get("rank_pattern") or config.get("alpha_pattern") or config.get("bias", "none") != "none":
            raise UnsafeArtifact(f"{folder} uses rank_pattern, alpha_pattern or bias, which are not served")
        rank = config["r"]
        scaling = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
        tensors = load_file(folder / WEIGHTS_FILE)
        adapter: Adapter = {}
        for key in list(tensors):
            if not key.endswith(".lora_A.weight"):
                continue
            name = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
            a = tensors.pop(key).float()
            b = tensors.pop(key.replace("lora_A", "lora_B"), torch.empty(0)).float()
            shape = self.shapes.get(name)
            if shape is None or b.shape != (shape[0], rank) or a.shape != (rank, shape[1]):
                raise UnsafeArtifact(f"{folder} does not fit this base model at {name}")
            adapter[name] = LowRank(a, b * scaling)
        if tensors or not adapter:
            raise UnsafeArtifact(
                f"{folder} has no LoRA weights, or others beside them: {sorted(tensors)[:3]}"
            )
        return adapter
