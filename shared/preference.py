"""Direct preference optimisation in ten lines, and a model that has learned to be brief
from nothing but pairs of a better and a worse answer.

Generated from ch07_instruction/ch07_preference.ipynb by `python -m shared.export`;
edit the notebook, not this file.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from shared.fetch import COURSE
from shared.instruction import answer_log_probs, collate, encode_entries, read_entries
from shared.text_data import Tokenizer

__all__ = ["load_preferences", "encode_pairs", "pair_log_probs", "dpo_loss"]


def load_preferences(path: str | Path | None = None) -> list[dict]:
    """Return pairs: prompt, chosen, rejected, all text; the course's own have a split.

    Raises ValueError for a pair that lacks one of them.
    """
    path = path or COURSE / "ch07_instruction" / "preferences.json"
    return read_entries(path, ("prompt", "chosen", "rejected"))


def encode_pairs(
    pairs: list[dict],
    tokenizer: Tokenizer,
    context_length: int,
    template: str = "chatml",
) -> list[tuple]:
    """Return (chosen, rejected) for each pair, both as (prompt ids, answer ids).

    Raises ValueError for one that is longer than the context.
    """
    sides = []
    for side in ("chosen", "rejected"):
        entries = [
            {"instruction": p["prompt"], "input": "", "output": p[side]} for p in pairs
        ]
        sides.append(encode_entries(entries, tokenizer, context_length, template))
    return list(zip(*sides, strict=True))


def pair_log_probs(
    model: nn.Module, examples: list[tuple], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and token counts, each (2, B): chosen, rejected."""
    chosen, rejected = zip(*examples, strict=True)
    batch = collate([*chosen, *rejected], pad_id)
    log_probs, counts = answer_log_probs(model, *batch)
    return log_probs.view(2, -1), counts.view(2, -1)


def dpo_loss(
    policy: torch.Tensor, reference: torch.Tensor, beta: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of DPO (Rafailov et al., 2023), and the margins (B,).

    policy and reference (2, B) are log-probabilities of the chosen and the rejected
    answers. A margin is the reward of the chosen answer minus that of the rejected one.
    """
    rewards = beta * (policy - reference)  # (2, B)
    margins = rewards[0] - rewards[1]
    return -F.logsigmoid(margins).mean(), margins.detach()
