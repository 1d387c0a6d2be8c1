"""You derive direct preference optimisation with a pencil, one small step after
another, and then train the chat model on pairs of its own answers: one that passed a
check, and one that did not.

Generated from ch07_instruction/ch07_preference.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from shared.gpt_model import Decoder
from shared.instruction import answer_log_probs, collate, encode_entries, read_entries
from shared.support import COURSE
from shared.text_data import Tokenizer

__all__ = [
    "load_preferences", "encode_pairs", "collate_pairs", "preference_margins",
    "dpo_loss",
]  # fmt: skip


# Section 7.11: Preference pairs: what is better?
def load_preferences(path: str | Path | None = None) -> list[dict]:
    """Return pairs: prompt, chosen, rejected, all text; the course's own have a split.

    Raises ValueError for a pair that lacks one of them.
    """
    path = path or COURSE / "ch07_instruction" / "preferences.json"
    return read_entries(path, "prompt", "chosen", "rejected")


def encode_pairs(
    pairs: list[dict], tokenizer: Tokenizer, context_length: int
) -> list[tuple]:
    """Return (chosen, rejected) for each pair, both as (prompt ids, answer ids).

    Raises ValueError for one that is longer than the context.
    """
    sides = []
    for side in ("chosen", "rejected"):
        entries = [{"turns": [p["prompt"], p[side]]} for p in pairs]
        sides.append(encode_entries(entries, tokenizer, context_length))
    return list(zip(*sides, strict=True))


def collate_pairs(examples: list[tuple]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and targets (2 B, T): the chosen answers, then the rejected."""
    chosen, rejected = zip(*examples, strict=True)
    return collate([*chosen, *rejected])


# Section 7.14: The DPO loss: how does a preference become a gradient?
def preference_margins(
    policy: torch.Tensor, reference: torch.Tensor, beta: float = 0.1
) -> torch.Tensor:
    """Return the reward of the chosen answer minus that of the rejected one, (B,).

    Both arguments are log-probabilities (2, B), of the chosen and the rejected answers.
    """
    rewards = beta * (policy - reference)  # (2, B)
    return rewards[0] - rewards[1]


def dpo_loss(
    model: Decoder,
    token_ids: torch.Tensor,
    targets: torch.Tensor,
    reference: torch.Tensor,
    beta: float = 0.1,
) -> tuple[torch.Tensor, int]:
    """Return the summed loss of DPO (Rafailov et al., 2023), and the number of pairs.

    The batch is that of collate_pairs; `reference` (2, B) has the log-probabilities
    that the model gave before it was trained.
    """
    policy, _ = answer_log_probs(model, token_ids, targets)
    margins = preference_margins(policy.view(2, -1), reference, beta)
    return -F.logsigmoid(margins).sum(), len(margins)
