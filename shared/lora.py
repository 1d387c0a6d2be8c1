"""A way to change every layer of a model by training one weight in a hundred, and an
adapter of a few megabytes that can be put on and taken off.

Generated from ch06_classification/ch06_lora.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from shared.support.files import read_trained, save_trained

__all__ = [
    "LoRALayer", "TARGETS", "lora_layers", "apply_lora", "merge_lora",
    "save_adapter", "load_adapter", "without_adapter",
]  # fmt: skip


# Section 6.9: How is it built?
class LoRALayer(nn.Module):
    """W x + alpha / rank · B A x with a frozen linear layer W: (..., in) -> (..., out).

    A (rank, in) starts as nn.Linear's weights do, B (out, rank) at zero.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        weight = linear.weight
        self.linear = linear.requires_grad_(False)
        self.scale = alpha / rank
        self.A = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.B = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)
        self.on = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return y + self.scale * (x @ self.A.T @ self.B.T) if self.on else y


TARGETS = ("W_query", "W_key", "W_value", "out_proj")


def lora_layers(model: nn.Module) -> dict[str, LoRALayer]:
    """Return the LoRA layers of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALayer)}


def apply_lora(
    model: nn.Module, rank: int = 8, alpha: float = 16, targets: Sequence[str] = TARGETS
) -> nn.Module:
    """Freeze a model, give each linear layer with a target name an adapter, return it.

    Raises ValueError if it has adapters already, or no layer of such a name.
    """
    if lora_layers(model):
        raise ValueError("the model has LoRA layers already: merge them first")
    model.requires_grad_(False)
    for name, linear in list(model.named_modules()):
        if name.rpartition(".")[2] in targets and isinstance(linear, nn.Linear):
            model.set_submodule(name, LoRALayer(linear, rank, alpha))
    if not lora_layers(model):
        raise ValueError(f"the model has no linear layer named {', '.join(targets)}")
    return model


@torch.no_grad()
def merge_lora(model: nn.Module) -> nn.Module:
    """Add every adapter to its matrix, put the plain layers back, return the model."""
    for name, layer in lora_layers(model).items():
        layer.linear.weight += layer.scale * layer.B @ layer.A
        model.set_submodule(name, layer.linear)
    return model


# Section 6.10: What is kept, and how are adapters switched?
def save_adapter(model: nn.Module, folder: str | Path) -> None:
    """Write what is trained of a model with adapters, as safetensors, and the settings.

    Raises ValueError for a model without adapters.
    """
    if not (layers := lora_layers(model)):
        raise ValueError("the model has no adapters to save")
    first = next(iter(layers.values()))
    rank = len(first.A)
    targets = sorted({name.rpartition(".")[2] for name in layers})
    settings = {"rank": rank, "alpha": first.scale * rank, "targets": targets}
    save_trained(model, folder, settings)


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put the adapter that save_adapter wrote on a model, in place of any other.

    What it holds can be trained on; of a model without adapters, all else is frozen.
    Raises ValueError if it belongs to another model, whose layers then stay as they
    were, and as read_trained does.
    """
    stored, settings = read_trained(folder)
    fresh = not lora_layers(model)
    if fresh:
        apply_lora(model, **settings)
    ours = dict(model.named_parameters())
    needed = {n for n in ours if n.endswith((".A", ".B"))} | stored.keys()
    fits = {n for n, t in stored.items() if n in ours and ours[n].shape == t.shape}
    if wrong := needed - fits:
        if fresh:
            merge_lora(model)  # B is zero: this takes the layers out again
        raise ValueError(f"{folder} is for another model: {len(wrong)} tensors differ")
    model.load_state_dict(stored, strict=False)
    for name in stored:  # also a head that was trained with the adapter
        ours[name].requires_grad_()
    for layer in lora_layers(model).values():
        layer.scale = settings["alpha"] / settings["rank"]
    return model


@contextlib.contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Within a `with` block, let the model answer as if it had no adapters."""
    layers = lora_layers(model).values()
    for layer in layers:
        layer.on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.on = True
