"""A model that answers the way you taught it, scored on questions it has never seen,
and a chat with it in your terminal.

Generated from ch07_instruction/ch07_instruction.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from shared.gpt_model import Decoder
from shared.pretrained_weights import chat_prompt, end_token, fill_frame
from shared.pretraining import IGNORE, TrainConfig, Trainer, generate, train
from shared.support import COURSE, read_json, require_whole
from shared.support.modules import evaluating, precise
from shared.text_data import Tokenizer

__all__ = [
    "read_entries", "load_instructions", "prompt_ids", "encode_entries", "collate",
    "is_exact", "answer_all", "length_batches", "tune", "answer_log_probs",
    "likelihoods",
]  # fmt: skip


# Section 7.1: What is left to learn?
def read_entries(path: str | Path, *fields: str, **defaults: str) -> list[dict]:
    """Return the entries of a JSON file, each with these fields, or their defaults.

    Raises ValueError if it holds no list of any, an entry lacks a text for a field, or
    belongs to another split than train, validation or test.
    """
    found = read_json(path)
    if not isinstance(found, list) or not found:
        raise ValueError(f"{path} holds no list of entries")
    entries = []
    for n, entry in enumerate(found):
        entry = defaults | entry if isinstance(entry, dict) else {}
        for field in fields:
            if not isinstance(entry.get(field), str):
                raise ValueError(f"{path}: entry {n} has no text as its {field}")
        split = entry.get("split", "train")
        if split not in ("train", "validation", "test"):
            raise ValueError(f"{path}: entry {n} has the unknown split {split!r:.40}")
        entries.append(entry)
    return entries


def load_instructions(path: str | Path | None = None) -> list[dict]:
    """Return entries with instruction, input and output from a file in Alpaca's format.

    Without a path, the course's own, which also have kind, split and maybe accepted
    (answers) and near_miss (a wrong answer). Raises ValueError as read_entries does.
    """
    path = path or COURSE / "ch07_instruction" / "instructions.json"
    return read_entries(path, "instruction", "input", "output", input="")


# Section 7.2: What does a prompt look like?
def alpaca_prompt(instruction: str, input: str = "") -> str:
    """Return a prompt in Alpaca's format (Taori et al., 2023), up to the answer."""
    task = "Below is an instruction that describes a task"
    more = ", paired with an input that provides further context" if input else ""
    given = f"### Input:\n{input}\n\n" if input else ""
    return (
        f"{task}{more}. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n{given}### Response:\n"
    )


def chatml_prompt(instruction: str, input: str = "") -> str:
    """Return the prompt in ChatML, SmolLM2's format; the input has its own line."""
    content = f"{instruction}\n{input}" if input else instruction
    return chat_prompt([{"role": "user", "content": content}])


TEMPLATES = {"alpaca": alpaca_prompt, "chatml": chatml_prompt}


def prompt_ids(
    entry: dict, tokenizer: Tokenizer, template: str = "chatml"
) -> list[int]:
    """Return the ids of an entry's prompt, by "chatml" or "alpaca".

    What looks like a special token in the entry's words is plain text.
    """
    words = [entry["instruction"]]
    if entry["input"]:
        words.append(entry["input"])
    frame = TEMPLATES[template](*["\0"] * len(words))
    return fill_frame(frame, words, tokenizer)


def encode_entries(
    entries: list[dict],
    tokenizer: Tokenizer,
    context_length: int,
    template: str = "chatml",
) -> list[tuple[list[int], list[int]]]:
    """Return (prompt ids, answer ids with the end token) of each entry.

    Raises ValueError for one that is longer than the context.
    """
    examples = []
    for n, entry in enumerate(entries):
        prompt = prompt_ids(entry, tokenizer, template)
        answer = tokenizer.encode_ordinary(entry["output"]) + [end_token(tokenizer)]
        if len(prompt) + len(answer) > context_length:
            raise ValueError(
                f"entry {n} has {len(prompt)} + {len(answer)} tokens, more than the "
                f"context of {context_length}: {entry['instruction'][:40]!r}"
            )
        examples.append((prompt, answer))
    return examples


# Section 7.3: How do answers of different lengths share a batch?
def collate(
    examples: list[tuple[list[int], list[int]]], *, mask_prompt: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and targets (B, T) int64 of (prompt, answer) pairs.

    Rows are padded on the right. Targets in the padding, and inside the prompt if
    mask_prompt, are IGNORE.
    """
    rows = [torch.tensor(prompt + answer) for prompt, answer in examples]
    first = torch.tensor([len(p) - 1 if mask_prompt else 0 for p, _ in examples])
    last = torch.tensor([len(row) - 1 for row in rows])
    token_ids = pad_sequence(rows, batch_first=True)
    place = torch.arange(token_ids.shape[1] - 1)
    counts = (place >= first[:, None]) & (place < last[:, None])  # (B, T)
    return token_ids[:, :-1], token_ids[:, 1:].where(counts, IGNORE)


# Section 7.4: How many answers are right?
def is_exact(answer: str, entry: dict) -> bool:
    """Return whether an answer is in entry["accepted"], but for case and last stop."""
    if entry.get("kind") == "punctuation":
        return answer.strip() in entry["accepted"]

    def plain(text: str) -> list[list[str]]:
        lines = text.casefold().strip().rstrip(".").splitlines()
        return [line.split() for line in lines]

    return plain(answer) in map(plain, entry["accepted"])


def answer_all(
    model: Decoder,
    tokenizer: Tokenizer,
    entries: list[dict],
    max_new_tokens: int = 32,
    *,
    template: str = "chatml",
    batch_size: int = 32,
) -> list[str]:
    """Return the model's greedy answers to entries, in batches of similar length.

    They are those that it gives to each entry alone. Raises ValueError for a batch_size
    below 1, or max_new_tokens below 0.
    """
    require_whole(batch_size=batch_size)
    require_whole(0, max_new_tokens=max_new_tokens)
    end = end_token(tokenizer)
    prompts = [torch.tensor(prompt_ids(e, tokenizer, template)) for e in entries]
    by_length = sorted(range(len(entries)), key=lambda i: len(prompts[i]))
    # Near the context, a longer neighbour would cut an answer: equal lengths only.
    free = model.config.context_length - max_new_tokens
    groups = []
    for _, alike in groupby(by_length, key=lambda i: max(len(prompts[i]), free)):
        group = list(alike)
        groups += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    answers = [""] * len(entries)
    for some in groups:
        rows = [prompts[i].to(model.device) for i in some]
        token_ids = pad_sequence(rows, batch_first=True, padding_side="left")
        n_prompt = token_ids.shape[1]
        pad_left = torch.tensor([n_prompt - len(row) for row in rows]).to(model.device)
        longer = generate(
            model, token_ids, max_new_tokens, stop_token=end, pad_left=pad_left
        )
        for i, new in zip(some, longer[:, n_prompt:].tolist(), strict=True):
            new = new[: new.index(end)] if end in new else new
            answers[i] = tokenizer.decode(new).strip()
    return answers


# Section 7.5: What does training change?
def length_batches(
    examples: list, batch_size: int, generator: torch.Generator
) -> list[list]:
    """Return all examples in groups of similar length; groups and neighbours at random.

    The length of an example is that of all lists of ids in it. Raises ValueError for a
    batch_size below 1.
    """
    require_whole(batch_size=batch_size)

    def length(example) -> int:
        return 1 if isinstance(example, int) else sum(map(length, example))

    noise = (8 * torch.rand(len(examples), generator=generator)).tolist()
    lengths = [length(example) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: lengths[i] + noise[i])
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    shuffled = torch.randperm(len(groups), generator=generator).tolist()
    return [[examples[i] for i in groups[n]] for n in shuffled]


def tune(
    model: Decoder,
    batches: list[tuple[torch.Tensor, torch.Tensor]],
    learning_rate: float = 1e-3,
    *,
    progress: bool = True,
) -> Iterator[dict]:
    """Train what is trainable, a step for each batch; yield the records of `train`.

    A batch is token ids and targets, as collate returns them.
    """
    steps = len(batches)
    warm_up = min(5, steps)
    config = TrainConfig(steps, learning_rate, warmup_steps=warm_up, weight_decay=0.0)
    return train(Trainer(model, config), batches, progress=progress)


# Section 7.7: Can a model be the judge?
def answer_log_probs(
    model: Decoder, token_ids: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probability (B,) in nats and number of tokens (B,) of each answer.

    That is of each row's targets but IGNORE, summed in float32 at least. The output
    head, the largest product of all, is computed at those positions only. The batch may
    lie on another device than the model.
    """
    token_ids, targets = token_ids.to(model.device), targets.to(model.device)
    counts = targets != IGNORE  # (B, T)
    logits = model.out_head(model.hidden_states(token_ids)[counts])  # (N, V)
    losses = F.cross_entropy(precise(logits), targets[counts], reduction="none")  # (N,)
    row = counts.nonzero()[:, 0]  # (N,)
    sums = losses.new_zeros(len(token_ids)).index_add(0, row, -losses)
    return sums, counts.sum(dim=1)


@torch.no_grad()
def likelihoods(
    model: Decoder, tokenizer: Tokenizer, entries: list[dict], template: str = "chatml"
) -> torch.Tensor:
    """Return the mean log-probability (N,) per token of each entry's output.

    In evaluation mode. Raises ValueError as encode_entries does.
    """
    examples = encode_entries(entries, tokenizer, model.config.context_length, template)
    parts = []
    with evaluating(model):
        for start in range(0, len(examples), 16):
            batch = collate(examples[start : start + 16])
            sums, counts = answer_log_probs(model, *batch)
            parts.append(sums / counts)
    return torch.cat(parts)
