"""A way to change every layer of a model by training one weight in a hundred. You work
out with a pencil how much memory that saves, and put adapters of a few megabytes on and
off like hats.

Generated from ch06_classification/ch06_lora.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from shared.gpt_model import Decoder
from shared.support import misfits, refuse_text, require_whole
from shared.support.files import read_trained, save_trained
from shared.support.modules import all_or_nothing

__all__ = [
    "LoRALayer", "TARGETS", "lora_layers", "put_adapters", "apply_lora",
    "merge_lora", "save_adapter", "load_adapter", "without_adapter",
]  # fmt: skip


# Section 6.12: LoRA: how is it built?
class LoRALayer(nn.Module):
    """W x + alpha / rank · B A x with a frozen linear layer W: (..., in) -> (..., out).

    A (rank, in) starts as nn.Linear's weights do, B (out, rank) at zero. Raises
    ValueError for a rank below 1.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        require_whole(rank=rank)
        weight = linear.weight
        self.scale = alpha / rank
        self.A = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.B = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)
        self.linear = linear.requires_grad_(False)
        self.training = linear.training
        self.on = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return y + self.scale * (x @ self.A.T @ self.B.T) if self.on else y


TARGETS = ("W_query", "W_key", "W_value", "out_proj")


def lora_layers(model: nn.Module) -> dict[str, LoRALayer]:
    """Return the LoRA layers of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALayer)}


def put_adapters(model: nn.Module, layers: dict[str, LoRALayer]) -> nn.Module:
    """Take off all LoRA layers of a model, put these on instead, return the model."""
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.linear)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return model


def apply_lora(
    model: nn.Module, rank: int = 8, alpha: float = 16, targets: Sequence[str] = TARGETS
) -> nn.Module:
    """Freeze a model, give each linear layer with a target name an adapter, return it.

    Raises ValueError, and changes nothing, if it has adapters already, or no layer of
    such a name, and for a rank below 1.
    """
    refuse_text(targets=targets)
    if lora_layers(model):
        raise ValueError("the model has LoRA layers already: merge them first")
    layers = {
        name: LoRALayer(linear, rank, alpha)
        for name, linear in model.named_modules()
        if name.rpartition(".")[2] in targets and isinstance(linear, nn.Linear)
    }
    if not layers:
        raise ValueError(f"the model has no linear layer named {', '.join(targets)}")
    return put_adapters(model.requires_grad_(False), layers)


@torch.no_grad()
def merge_lora(model: nn.Module) -> nn.Module:
    """Add every adapter to its matrix, put the plain layers back, return the model."""
    for layer in lora_layers(model).values():
        # A matrix of its own: the old one may serve another layer, too (a tied head).
        merged = layer.linear.weight + layer.scale * layer.B @ layer.A
        layer.linear.weight = nn.Parameter(merged, requires_grad=False)
    put_adapters(model, {})
    if isinstance(model, Decoder) and model.out_head.weight is not model.tok_emb.weight:
        model.config = replace(model.config, tie_weights=False)  # no longer
    return model


# Section 6.14: Adapters: how are they kept and switched?
def save_adapter(model: nn.Module, folder: str | Path) -> None:
    """Write the adapters of a model and what else is trained of it, and the settings.

    Raises ValueError for a model without adapters, and for one whose adapters are
    frozen: what else was trained can then not be told.
    """
    if not (layers := lora_layers(model)):
        raise ValueError("the model has no adapters to save")
    adapters = {f"{name}.{part}" for name in layers for part in "AB"}
    ours = dict(model.named_parameters())
    if not any(ours[name].requires_grad for name in adapters):
        raise ValueError("the adapters are frozen: unfreeze all that was trained first")
    first = next(iter(layers.values()))
    rank, targets = len(first.A), {name.rpartition(".")[2] for name in layers}
    settings = {"rank": rank, "alpha": first.scale * rank, "targets": sorted(targets)}
    kept = {n: p for n, p in ours.items() if p.requires_grad or n in adapters}
    save_trained(kept, folder, settings)


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put the adapter that save_adapter wrote on a model, in place of any other.

    What it holds can be trained on, all else is frozen. Raises ValueError, beginning
    with the folder, if it is none, or for another model: the model then stays as it
    was. Raises as read_trained does, too.
    """
    stored, settings = read_trained(folder)
    before = lora_layers(model)
    with all_or_nothing(model, f"{folder} holds no adapter that fits"):
        put_adapters(model, {})
        apply_lora(model, settings["rank"], settings["alpha"], settings["targets"])
        for name, new in lora_layers(model).items():
            if name in before and before[name].A.shape == new.A.shape:
                new.A, new.B = before[name].A, before[name].B  # a Trainer may have them
        ours = dict(model.named_parameters())
        need = {n: p for n, p in ours.items() if n in stored or n[-2:] in (".A", ".B")}
        if wrong := misfits(need, stored):
            raise ValueError(f"for another model: {len(wrong)} tensors differ")
    model.load_state_dict(stored, strict=False)
    for name in stored:  # also a head that was trained with the adapter
        ours[name].requires_grad_()
    return model


@contextlib.contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Within a `with` block, let the model answer as if it had no adapters."""
    before = {layer: layer.on for layer in lora_layers(model).values()}
    for layer in before:
        layer.on = False
    try:
        yield
    finally:
        for layer, was_on in before.items():
            layer.on = was_on
