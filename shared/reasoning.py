"""A small model that is told only "right" or "wrong", and teaches itself to write its
calculation down: reinforcement learning from the gradient of an average to GRPO, run to
its end on your own machine.

Generated from ch07_instruction/ch07_reasoning.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from math import comb

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from shared.gpt_model import Decoder
from shared.pretrained_weights import end_token
from shared.pretraining import IGNORE, generate
from shared.support.modules import evaluating, precise
from shared.text_data import END_OF_TEXT
from shared.tokenizer import BPETokenizer

__all__ = [
    "final_number", "checked_sum", "sample_groups", "answer_batch", "pass_at_k",
    "majority", "group_advantages", "token_log_probs", "policy_loss",
    "group_batches",
]  # fmt: skip


# Section 7.13: Why not labels?
def final_number(text: str) -> int | None:
    """Return the last whole number in a text, or None."""
    found = re.findall(r"\d+", text)
    return int(found[-1]) if found else None


def checked_sum(question: str, answer: str) -> float:
    """Return 1.0 if the last number of the answer is the sum of the question's, or 0.0.

    >>> checked_sum("16+29=", "16+29=45>45"), checked_sum("What is 16 + 29?", "It's 44.")
    (1.0, 0.0)
    """
    total = sum(map(int, re.findall(r"\d+", question)))
    return float(final_number(answer) == total)


def split_of(question: str) -> str:
    """Return train, validation or test: the same for any order of the numbers."""
    numbers = sorted(re.findall(r"\d+", question))
    byte = sha256(" ".join(numbers).encode()).digest()[0]
    return "test" if byte < 32 else "validation" if byte < 64 else "train"


def draw_sums(
    n: int, split: str, seed: int, n_numbers: int = 4, most: int = 99, form: str = "{}="
) -> list[str]:
    """Return n different sums of numbers from 10 on, such as "23+45+71+18="."""
    dice, found = random.Random(seed), dict[str, None]()
    plus = " + " if " " in form else "+"
    while len(found) < n:
        numbers = [str(dice.randint(10, most)) for _ in range(n_numbers)]
        question = form.format(plus.join(numbers))
        if split_of(question) == split:
            found[question] = None
    return list(found)


def worked_sum(question: str, write: bool) -> str:
    """Return the right answer: "> 157", or with its running sums before it."""
    total, *others = map(int, re.findall(r"\d+", question))
    steps = []
    for number in others:
        steps.append(f"{total}+{number}={total + number}")
        total += number
    return ",".join(steps) * write + f">{total}"


def sums_tokenizer() -> BPETokenizer:
    """Return a tokenizer with one token for each sign of a sum."""
    signs = [sign.encode() for sign in [*"0123456789+=,>", END_OF_TEXT]]
    return BPETokenizer(dict(enumerate(signs)), [], {END_OF_TEXT: len(signs) - 1})


# Section 7.14: Does writing it down help?
@torch.no_grad()
def sample_groups(
    model: Decoder,
    tokenizer: BPETokenizer,
    prompts: list[list[int]],
    size: int,
    max_new_tokens: int,
    **sampling,
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Return token ids, targets (N, T) and texts of `size` answers to each prompt.

    Answers to one prompt are neighbours. Targets are the tokens of the answers, with
    their end; prompts and padding are IGNORE. `sampling` is that of `stream`, with a
    temperature of 1 unless it says another.
    """
    end = end_token(tokenizer)
    rows = [prompt for prompt in prompts for _ in range(size)]
    padded = pad_sequence([torch.tensor(r) for r in rows], True, end, "left")
    n_prompt = padded.shape[1]
    pad_left = torch.tensor([n_prompt - len(row) for row in rows])
    sampling = {"temperature": 1.0, "stop_token": end} | sampling
    longer = generate(
        model,
        padded.to(model.device),
        max_new_tokens,
        pad_left=pad_left.to(model.device),
        **sampling,
    )
    answers = longer[:, n_prompt:].tolist()
    answers = [a[: a.index(end) + 1] if end in a else a for a in answers]
    texts = [tokenizer.decode(i for i in a if i != end) for a in answers]
    return *answer_batch(rows, answers), texts


def answer_batch(
    prompts: list[list[int]], answers: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and targets (N, T); only the tokens of the answers count."""
    both = list(zip(prompts, answers, strict=True))
    rows = [torch.tensor(p + a) for p, a in both]
    wanted = [torch.tensor([IGNORE] * (len(p) - 1) + a) for p, a in both]
    token_ids = pad_sequence(rows, batch_first=True)[:, :-1]
    return token_ids, pad_sequence(wanted, True, IGNORE)


def pass_at_k(right: torch.Tensor, k: int) -> float:
    """Return how often at least one of k answers is right, from (Q, N) of 0 and 1.

    Unbiased, over all ways to choose k of the N answers (Chen et al., 2021).
    """
    n = right.shape[1]
    missed = [comb(n - int(c), k) / comb(n, k) for c in right.sum(dim=1)]
    return 1 - sum(missed) / len(missed)


def majority(answers: list[str]) -> int | None:
    """Return the commonest last number of some answers (Wang et al., 2022)."""
    return Counter(map(final_number, answers)).most_common(1)[0][0]


# Section 7.15: From REINFORCE to GRPO
def group_advantages(rewards: torch.Tensor, scale: bool = True) -> torch.Tensor:
    """Return how much better each answer is than its group: (G, S) -> (G, S).

    Its reward less the group's mean, over the standard deviation (GRPO, Shao et al.,
    2024), or not (`scale` False; Liu et al., 2025). All zero if all are alike.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if not scale:
        return centred
    return centred / rewards.std(dim=1, correction=0, keepdim=True).clamp(min=1e-4)


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
    *,
    clip: tuple[float, float] = (0.2, 0.2),
    beta: float = 0.0,
    mean_over: str | int = "answers",
) -> tuple[torch.Tensor, int]:
    """Return the summed loss of GRPO (Shao et al., 2024), and how much counts in it.

    `advantages` (N,); `old` and `reference` (N, T) are log-probabilities of the
    targets: of the model that wrote them (by default as it is now), and of the one that
    it is held to, by `beta`. Ratios count from 1 - clip[0] to 1 + clip[1]. `mean_over`:
    "answers" (each counts the same), "tokens" (DAPO, Yu et al., 2025), or a number that
    every answer is divided by (Dr. GRPO, Liu et al., 2025).
    """
    counts = targets != IGNORE
    new = token_log_probs(model, token_ids, targets)
    ratio = (new - (new.detach() if old is None else old)).exp()
    kept = ratio.clamp(1 - clip[0], 1 + clip[1])
    gains = torch.minimum(ratio * advantages[:, None], kept * advantages[:, None])
    if reference is not None:
        less = reference - new
        gains = gains - beta * (less.exp() - less - 1)
    sums, lengths = (gains * counts).sum(dim=1), counts.sum(dim=1)  # (N,) each
    if mean_over == "answers":
        return -(sums / lengths).sum(), len(sums)
    return -sums.sum(), int(
        lengths.sum() if mean_over == "tokens" else len(sums) * mean_over
    )


def group_batches(
    model: Decoder,
    tokenizer: BPETokenizer,
    steps: Iterable[list[str]],
    reward: Callable[[str, str], float],
    size: int,
    max_new_tokens: int,
    *,
    encode: Callable[[str], list[int]],
    reuse: int = 1,
    scale: bool = True,
    reference: Callable | None = None,
    generator: torch.Generator | None = None,
    log: list[dict] | None = None,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield batches for policy_loss: answers that the model writes when asked for them.

    For each list of questions `size` answers to each, `reuse` times. `encode` makes a
    question a prompt; `reference(token_ids, targets)` gives log-probabilities. What was
    written goes to `log`: questions, texts, and the rewards (G, size).
    """
    for questions in steps:
        prompts = [encode(question) for question in questions]
        token_ids, targets, texts = sample_groups(
            model, tokenizer, prompts, size, max_new_tokens, generator=generator
        )
        asked = [question for question in questions for _ in range(size)]
        rewards = torch.tensor(
            [reward(q, t) for q, t in zip(asked, texts, strict=True)]
        )
        groups = rewards.view(-1, size)
        if log is not None:
            log.append({"questions": questions, "texts": texts, "rewards": groups})
        batch = [token_ids, targets, group_advantages(groups, scale).flatten()]
        if reuse > 1 or reference is not None:
            ids = token_ids.to(model.device), targets.to(model.device)
            with torch.no_grad(), evaluating(model):
                batch.append(token_log_probs(model, *ids))
                batch += [] if reference is None else [reference(*ids)]
        for _ in range(reuse):
            yield tuple(batch)
