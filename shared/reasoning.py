"""A small model that can write a calculation down, but seldom does, is told "right" or
"wrong" and nothing else, and finds out that writing pays. You build its training step
by step, from the gradient of an average to GRPO, and run it to the end on your own
machine.

Generated from ch07_instruction/ch07_reasoning.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256

import torch
import torch.nn.functional as F

from shared.gpt_model import Decoder
from shared.instruction import collate
from shared.pretrained_weights import end_token
from shared.pretraining import IGNORE, generate
from shared.support.modules import evaluating, precise
from shared.text_data import Tokenizer

__all__ = [
    "checked_sum", "sample_groups", "group_advantages", "token_log_probs",
    "policy_loss", "group_batches",
]  # fmt: skip


# Section 7.18: Rewards: what can a model learn from without labels?
def checked_sum(question: str, answer: str) -> float:
    """Return 1.0 if the last number of the answer is the sum of the question's, or 0.0.

    >>> checked_sum("16+29=", "16+29=45>45"), checked_sum("What is 16 + 29?", "44!")
    (1.0, 0.0)
    """
    total = sum(map(int, re.findall(r"\d+", question)))
    return float(final_number(answer) == total)


def final_number(text: str) -> int | None:
    """Return the last whole number in a text, or None."""
    found = re.findall(r"\d+", text)
    return int(found[-1]) if found else None


# Section 7.19: Chain of thought: does writing it down help?
def worked_sum(question: str, write: bool = True) -> str:
    """Return the right answer, with its running sums written before it or not.

    >>> worked_sum("23+45+71="), worked_sum("23+45+71=", write=False)
    ('23+45=68,68+71=139>139', '>139')
    """
    total, *others = map(int, re.findall(r"\d+", question))
    steps = []
    for number in others:
        steps.append(f"{total}+{number}={total + number}")
        total += number
    return ",".join(steps) * write + f">{total}"


def split_of(question: str) -> str:
    """Return train, validation or test: the same for any order of the numbers."""
    numbers = sorted(re.findall(r"\d+", question))
    byte = sha256(" ".join(numbers).encode()).digest()[0]
    return "test" if byte < 32 else "validation" if byte < 64 else "train"


def draw_sums(n: int, split: str, seed: int, form: str = "{}+{}+{}+{}=") -> list[str]:
    """Return n different questions of a split, about numbers from 10 to 99."""
    dice, found = random.Random(seed), dict[str, None]()
    while len(found) < n:
        question = form.format(*(dice.randint(10, 99) for _ in range(form.count("{}"))))
        if split_of(question) == split:
            found[question] = None
    return list(found)


def sample_groups(
    model: Decoder, tokenizer: Tokenizer, prompts: list, size: int, **sampling
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Return token ids, targets (N, T) and texts of `size` answers to each prompt.

    A prompt is a list of ids; its answers are neighbours. Targets are their tokens, the
    end token included; all else is IGNORE. `sampling` has max_new_tokens and what
    `stream` takes; the temperature is 1 by default.
    """
    end = end_token(tokenizer)
    rows = [prompt for prompt in prompts for _ in range(size)]
    n_prompt = max(map(len, rows))
    padding = [n_prompt - len(row) for row in rows]
    padded = [[end] * n + row for n, row in zip(padding, rows, strict=True)]
    token_ids, pad_left = (torch.tensor(x).to(model.device) for x in (padded, padding))
    sampling.setdefault("temperature", 1.0)
    longer = generate(model, token_ids, stop_token=end, pad_left=pad_left, **sampling)
    answers = longer[:, n_prompt:].tolist()
    answers = [a[: a.index(end) + 1] if end in a else a for a in answers]
    texts = [tokenizer.decode([i for i in a if i != end]) for a in answers]
    token_ids, targets = collate(list(zip(rows, answers, strict=True)))
    return token_ids.to(model.device), targets.to(model.device), texts


# Section 7.20: From REINFORCE to GRPO
def group_advantages(rewards: torch.Tensor, scale: bool = True) -> torch.Tensor:
    """Return how much better each answer is than its group: (G, S) -> (G, S).

    Its reward less the group's mean; with `scale`, in standard deviations (GRPO, Shao
    et al., 2024), without, not (Dr. GRPO, Liu et al., 2025). All 0 if all are alike.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    spread = rewards.std(dim=1, correction=0, keepdim=True).clamp(min=1e-4)
    return centred / spread if scale else centred


def token_log_probs(
    model: Decoder, token_ids: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Return the log-probability of each target that counts, else 0: (N, T) both."""
    counts = targets != IGNORE
    logits = precise(model.out_head(model.hidden_states(token_ids)[counts]))
    losses = F.cross_entropy(logits, targets[counts], reduction="none")
    return losses.new_zeros(targets.shape).masked_scatter(counts, -losses)


def policy_loss(
    model: Decoder,
    token_ids: torch.Tensor,
    targets: torch.Tensor,
    advantages: torch.Tensor,
    old: torch.Tensor | None = None,
    reference: torch.Tensor | None = None,
    clip: tuple[float, float] = (0.2, 0.2),
    beta: float = 0.0,
    per: str | int = "answer",
) -> tuple[torch.Tensor, int]:
    """Return the summed loss of GRPO (Shao et al., 2024), and how much counts in it.

    `advantages` (N,); `old` and `reference` (N, T) are log-probabilities of the
    targets: of the model that wrote them (None: this one, as it is now), and of the one
    that it is held to with `beta`. Ratios end at 1 - clip[0] and 1 + clip[1]. `per`:
    each "answer" counts the same, or each "token" (DAPO, Yu et al., 2025), or answers
    are divided by this number (Dr. GRPO, Liu et al., 2025).
    """
    new = token_log_probs(model, token_ids, targets)
    ratio = (new - (new.detach() if old is None else old)).exp()
    bounded = ratio.clamp(1 - clip[0], 1 + clip[1])
    gains = torch.minimum(advantages[:, None] * ratio, advantages[:, None] * bounded)
    if reference is not None:
        less = reference - new
        gains = gains - beta * (less.exp() - less - 1)
    counts = targets != IGNORE
    sums, lengths = (gains * counts).sum(dim=1), counts.sum(dim=1)  # (N,) each
    if per == "answer":
        return -(sums / lengths).sum(), len(sums)
    return -sums.sum(), int(lengths.sum()) if per == "token" else len(sums) * int(per)


# Section 7.21: The run: from right and wrong alone
def group_batches(
    model: Decoder,
    tokenizer: Tokenizer,
    steps: Iterable[list[str]],
    reward: Callable[[str, str], float],
    log: list[dict],
    encode: Callable[[str], list[int]],
    size: int = 8,
    reuse: int = 1,
    scale: bool = True,
    reference: Callable | None = None,
    **sampling,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield batches for policy_loss: answers that the model writes when they are due.

    Each of `steps` is some questions, which `encode` makes prompts, with `size` answers
    each; their batch comes `reuse` times. What was written is put into `log` with its
    questions and rewards (G, S). `reference(model, token_ids, targets)` is for a KL
    term: the log-probabilities of the reference model.
    """
    for questions in steps:
        prompts = [encode(question) for question in questions]
        *ids, texts = sample_groups(model, tokenizer, prompts, size, **sampling)
        asked = [question for question in questions for _ in range(size)]
        rewards = torch.tensor([*map(reward, asked, texts)]).view(-1, size)
        log.append({"questions": questions, "texts": texts, "rewards": rewards})
        batch = [*ids, group_advantages(rewards, scale).flatten()]
        if reuse > 1 or reference is not None:
            with torch.no_grad(), evaluating(model):
                batch.append(token_log_probs(model, *ids))
                batch += [reference(model, *ids)] if reference else []
        yield from reuse * [tuple(batch)]
