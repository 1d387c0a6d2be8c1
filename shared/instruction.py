"""A model of your own that tells the story you ask for, a chat model that you have
tuned on conversations, and numbers for what that has changed.

Generated from ch07_instruction/ch07_instruction.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

import re
from collections.abc import Iterator, Sequence
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
    "encode_turns", "collate", "answer_all", "length_batches", "tune",
    "read_entries", "load_conversations", "holds", "is_right", "encode_entries",
    "answer_log_probs", "likelihoods",
]  # fmt: skip

# Section 7.2: Prompt templates: where does the request end?
TEMPLATES = {  # the first frame, and that of every later turn of the user
    "chatml": (
        chat_prompt([{"role": "user", "content": "\0"}]),
        "\n<|im_start|>user\n\0<|im_end|>\n<|im_start|>assistant\n",
    ),
    "plain": ("<|endoftext|>\0\n", "\0\n"),
}


def flat(pieces: Sequence[list[int]]) -> list[int]:
    """Return all pieces as one list."""
    return [i for piece in pieces for i in piece]


def encode_turns(
    turns: Sequence[str], tokenizer: Tokenizer, template: str = "chatml"
) -> list[list[int]]:
    """Return a list of ids for each turn; the user begins, then they take turns.

    A turn of the user comes in its frame, up to where the answer begins; an answer
    comes with its end token. What looks like a special token in a turn is plain text.
    """
    first, later = TEMPLATES[template]
    pieces = []
    for n, text in enumerate(turns):
        if n % 2:
            pieces.append([*tokenizer.encode_ordinary(text), end_token(tokenizer)])
        else:
            pieces.append(fill_frame(later if n else first, [text], tokenizer))
    return pieces


# Section 7.3: Batches: which tokens count in the loss?
def collate(
    examples: Sequence[Sequence[list[int]]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and targets (B, T) int64 of examples.

    An example is lists of ids, by turns read and written, as from encode_turns. Rows
    are padded on the right. Targets are IGNORE but where the next token is written.
    """
    rows = [torch.tensor(flat(pieces)) for pieces in examples]
    turns = [flat([[n % 2] * len(p) for n, p in enumerate(e)]) for e in examples]
    token_ids = pad_sequence(rows, batch_first=True)  # (B, T + 1)
    written = pad_sequence([torch.tensor(row) for row in turns], batch_first=True) == 1
    return token_ids[:, :-1], token_ids[:, 1:].where(written[:, 1:], IGNORE)


# Section 7.4: Supervised fine-tuning: can your own GPT learn to listen?
def answer_all(
    model: Decoder,
    tokenizer: Tokenizer,
    talks: Sequence[Sequence[str]],
    max_new_tokens: int = 48,
    *,
    template: str = "chatml",
    batch_size: int = 32,
) -> list[str]:
    """Return the model's greedy answers to talks, in batches of similar length.

    A talk is turns of which the last is the user's. The answers are those that the
    model gives to each talk alone. Raises ValueError for a batch_size below 1, or
    max_new_tokens below 0.
    """
    require_whole(batch_size=batch_size)
    end = end_token(tokenizer)
    prompts = [torch.tensor(flat(encode_turns(t, tokenizer, template))) for t in talks]
    by_length = sorted(range(len(talks)), key=lambda i: len(prompts[i]))
    # Near the context, a longer neighbour would cut an answer: equal lengths only.
    free = model.config.context_length - max_new_tokens
    groups = []
    for _, alike in groupby(by_length, key=lambda i: max(len(prompts[i]), free)):
        group = list(alike)
        groups += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    answers = [""] * len(talks)
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
    muon: bool = False,
    progress: bool = True,
) -> Iterator[dict]:
    """Train what is trainable, a step for each batch; yield the records of `train`.

    A batch is token ids and targets, as collate returns them.
    """
    warm_up = min(5, len(batches))
    config = TrainConfig(len(batches), learning_rate, muon, warm_up, weight_decay=0.0)
    return train(Trainer(model, config), batches, progress=progress)


# Section 7.5: From tales to talks: what is a right answer?
def read_entries(path: str | Path, *fields: str) -> list[dict]:
    """Return the entries of a JSON file, each with a text in each of these fields.

    Raises ValueError if it holds no list of any, an entry lacks a field, or belongs to
    another split than train, validation or test.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} holds no list of entries")
    for n, entry in enumerate(entries):
        known = entry if isinstance(entry, dict) else {"split": entry}
        for field in fields:
            if not isinstance(known.get(field), str):
                raise ValueError(f"{path}: entry {n} has no text as its {field}")
        if known.get("split", "train") not in ("train", "validation", "test"):
            raise ValueError(f"{path}: entry {n} is of no known split: {entry!r:.60}")
    return entries


def load_conversations(path: str | Path | None = None) -> list[dict]:
    """Return entries with turns (user, assistant, user, ...) from a JSON file.

    Without a path, the course's own, which also have kind and split; those that can be
    checked have accepted (cores of right answers) and near_miss (a wrong answer).
    Entries in Alpaca's format (instruction, input, output) become two turns. Raises
    ValueError as read_entries does, and for an entry without such turns.
    """
    path = path or COURSE / "ch07_instruction" / "conversations.json"
    entries = read_entries(path)
    for n, entry in enumerate(entries):
        if "turns" not in entry:  # Alpaca's format
            task, given = entry.get("instruction") or "", entry.get("input") or ""
            entry["turns"] = [f"{task}\n\n{given}".strip(), entry.get("output")]
        turns = entry["turns"]
        if type(turns) is not list or {*map(type, turns)} != {str} or len(turns) % 2:
            raise ValueError(f"{path}: entry {n} has no turns of user and assistant")
    return entries


def holds(text: str, core: str) -> bool:
    """Return whether the core stands in the text, as whole words, whatever the case.

    >>> holds("It’s Rome.", "it's rome"), holds("It is 0.8 km.", "8")
    (True, False)
    """
    text, core = (words.replace("’", "'").casefold() for words in (text, core))
    before, after = r"(?<!\w)(?<!\d[.,])", r"(?!\w)(?![.,]\d)"  # no longer word, number
    return re.search(before + re.escape(core) + after, text) is not None


def is_right(answer: str, entry: dict) -> bool:
    """Return whether an answer holds one of the entry's accepted cores."""
    return any(holds(answer, core) for core in entry["accepted"])


# Section 7.6: LoRA on conversations: what happens in training?
def encode_entries(
    entries: list[dict],
    tokenizer: Tokenizer,
    context_length: int,
    template: str = "chatml",
) -> list[list[list[int]]]:
    """Return the encoded turns of each entry, for collate.

    Raises ValueError for an entry that is longer than the context.
    """
    examples = []
    for n, entry in enumerate(entries):
        pieces = encode_turns(entry["turns"], tokenizer, template)
        if (length := len(flat(pieces))) > context_length:
            rule = f"more than the context of {context_length}"
            raise ValueError(f"entry {n} has {length} tokens, {rule}: {entry!r:.60}")
        examples.append(pieces)
    return examples


# Section 7.8: Multiple choice by likelihood: how are models compared?
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
    """Return the mean log-probability (N,) per token of each entry's answers.

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
