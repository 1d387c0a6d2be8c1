"""Care for models: their modes, their numbers, their parts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from shared.support import misfits


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Within a `with` block, put a model in training or in evaluation mode.

    Afterwards, also after an error, each of its parts has the mode that it had.
    """
    modes = [(part, part.training) for part in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for part, before in modes:
            part.training = before


evaluating = partial(mode, training=False)  # nothing is dropped out


def precise(logits: torch.Tensor) -> torch.Tensor:
    """Return the logits in float32 (float64 stays): sums of bfloat16 lose their end."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def all_or_nothing(model: nn.Module, complaint: str) -> Iterator[None]:
    """Turn any error in a `with` block into a ValueError that begins with `complaint`.

    The model then has the parts that it had, and can be trained where it could.
    """
    parts = [(module, dict(module.named_children())) for module in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    except Exception as error:
        for module, children in parts:
            for name, child in children.items():
                module.register_module(name, child)
        for p, flag in flags:
            p.requires_grad_(flag)
        raise ValueError(f"{complaint}: {error}") from error


def check_kept(fresh: nn.Module, model: nn.Module, kept: Mapping[str, Any]) -> None:
    """Raise ValueError for weights that are not in `kept`, nor in a fresh model.

    That is: of another name or shape, or trained.
    """
    ours = dict(model.named_parameters())
    lost = misfits(dict(fresh.named_parameters()), ours)
    lost += [name for name, p in ours.items() if p.requires_grad and name not in kept]
    if lost:
        advice = "save_adapter keeps adapters, merge_lora takes them off"
        raise ValueError(f"{lost[0]} would not come back: {advice}")
