"""A model that answers the way you taught it, scored on questions it has never seen,
and a chat with it in your terminal.

Generated from ch07_instruction/ch07_instruction.ipynb by `python -m shared.export`;
edit the notebook, not this file.
"""

import argparse
import json
import logging
import os
import re
import sys
from pathlib import Path

import openai
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from shared.fetch import COURSE
from shared.lora import load_adapter, save_adapter
from shared.pretrained_weights import (
    Conversation,
    chat_prompt,
    fill_frame,
    load_pretrained,
    tokenizer_for,
)
from shared.pretraining import IGNORE, TrainConfig, generate, train_model
from shared.text_data import Tokenizer

__all__ = [
    "read_entries", "load_instructions", "alpaca_prompt", "chatml_prompt",
    "TEMPLATES", "end_token", "prompt_ids", "encode_entries", "collate", "is_exact",
    "answer_all", "length_batches", "tune", "answer_log_probs", "likelihoods",
    "RUBRIC", "read_score", "make_judge", "ask_judge", "main",
]  # fmt: skip


def read_entries(
    path: str | Path, fields: tuple[str, ...], **defaults: str
) -> list[dict]:
    """Return the entries of a JSON file, completed by `defaults`.

    Raises ValueError if it holds no list, or an entry lacks a text for a field.
    """
    entries = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds no list of entries")
    entries = [
        defaults | entry if isinstance(entry, dict) else entry for entry in entries
    ]
    for n, entry in enumerate(entries):
        for field in fields:
            if not isinstance(entry, dict) or not isinstance(entry.get(field), str):
                raise ValueError(
                    f"{path}: entry {n} has no text as its {field}: {str(entry)[:60]}"
                )
    return entries


def load_instructions(path: str | Path | None = None) -> list[dict]:
    """Return entries with instruction, input and output from a file in Alpaca's format.

    Without a path, the course's own, which also have kind, split and maybe accepted
    (answers) and near_miss (a wrong answer). Raises ValueError as read_entries does.
    """
    path = path or COURSE / "ch07_instruction" / "instructions.json"
    return read_entries(path, ("instruction", "input", "output"), input="")


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


def end_token(tokenizer: Tokenizer) -> int:
    """Return the id that ends an answer: that of <|im_end|>, else the end of text."""
    ids = tokenizer.encode("<|im_end|>", allowed_special="all")
    return ids[0] if len(ids) == 1 else tokenizer.eot_token


def prompt_ids(
    entry: dict, tokenizer: Tokenizer, template: str = "chatml"
) -> list[int]:
    """Return the ids of an entry's prompt; special tokens in its words are plain text.

    Raises ValueError for an unknown template.
    """
    if template not in TEMPLATES:
        raise ValueError(
            f"there is no template {template!r}, only {', '.join(TEMPLATES)}"
        )
    words = (
        [entry["instruction"], entry["input"]]
        if entry["input"]
        else [entry["instruction"]]
    )
    return fill_frame(TEMPLATES[template](*["\0"] * len(words)), words, tokenizer)


def encode_entries(
    entries: list[dict],
    tokenizer: Tokenizer,
    context_length: int,
    template: str = "chatml",
) -> list[tuple[list[int], list[int]]]:
    """Return (prompt ids, answer ids with the end token) of each entry.

    Raises ValueError for one that is longer than the context.
    """
    end, examples = end_token(tokenizer), []
    for n, entry in enumerate(entries):
        prompt = prompt_ids(entry, tokenizer, template)
        answer = [*tokenizer.encode_ordinary(entry["output"]), end]
        if len(prompt) + len(answer) > context_length:
            raise ValueError(
                f"entry {n} has {len(prompt)} + {len(answer)} tokens, more than the "
                f"context of {context_length}: {entry['instruction'][:40]!r}"
            )
        examples.append((prompt, answer))
    return examples


def collate(
    examples: list[tuple[list[int], list[int]]],
    pad_id: int,
    *,
    mask_prompt: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets (B, T) int64 of (prompt, answer) pairs, padded right.

    Targets in the padding, and inside the prompt if mask_prompt, are IGNORE.
    """
    rows = [torch.tensor(prompt + answer) for prompt, answer in examples]
    first = torch.tensor(
        [len(prompt) - 1 if mask_prompt else 0 for prompt, _ in examples]
    )
    last = torch.tensor([len(row) - 1 for row in rows])
    ids = pad_sequence(rows, True, pad_id)
    place = torch.arange(ids.shape[1] - 1)
    counts = (place >= first[:, None]) & (place < last[:, None])  # (B, T)
    return ids[:, :-1], ids[:, 1:].where(counts, IGNORE)


def is_exact(answer: str, entry: dict) -> bool:
    """Return whether an answer is in entry["accepted"], but for case and last stop."""
    if entry.get("kind") == "punctuation":
        return answer.strip() in entry["accepted"]

    def plain(text: str) -> list[list[str]]:
        return [
            line.split() for line in text.casefold().strip().rstrip(".").splitlines()
        ]

    return plain(answer) in map(plain, entry["accepted"])


@torch.no_grad()
def answer_all(
    model: nn.Module,
    tokenizer: Tokenizer,
    entries: list[dict],
    max_new_tokens: int = 32,
    *,
    template: str = "chatml",
    batch_size: int = 32,
) -> list[str]:
    """Return the model's greedy answers to entries, in batches of similar length."""
    end, device = end_token(tokenizer), model.tok_emb.weight.device
    prompts = [
        torch.tensor(prompt_ids(entry, tokenizer, template)) for entry in entries
    ]
    order = sorted(range(len(entries)), key=lambda i: len(prompts[i]))
    answers = [""] * len(entries)
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        ids = pad_sequence(
            [prompts[i] for i in some], True, end, padding_side="left"
        ).to(device)
        longest = ids.shape[1]
        pad_left = torch.tensor(
            [longest - len(prompts[i]) for i in some], device=device
        )
        ids = generate(model, ids, max_new_tokens, stop_token=end, pad_left=pad_left)
        for i, row in zip(some, ids[:, longest:].tolist(), strict=True):
            row = row[: row.index(end)] if end in row else row
            answers[i] = tokenizer.decode(row).strip()
    return answers


def length_batches(
    examples: list, batch_size: int, generator: torch.Generator
) -> list[list]:
    """Return all examples in groups of similar length; groups and neighbours at random.

    The length of an example is that of all lists of ids in it.
    """

    def length(example) -> int:
        return 1 if isinstance(example, int) else sum(map(length, example))

    noise = torch.rand(len(examples), generator=generator).tolist()
    order = sorted(
        range(len(examples)), key=lambda i: length(examples[i]) + 8 * noise[i]
    )
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    shuffled = torch.randperm(len(groups), generator=generator).tolist()
    return [[examples[i] for i in groups[n]] for n in shuffled]


def tune(
    model: nn.Module,
    batches: list[tuple[torch.Tensor, torch.Tensor]],
    *,
    learning_rate: float = 1e-3,
    folder: str | Path | None = None,
    save_every: int = 20,
    **options,
) -> list[dict]:
    """Train what is trainable, a step for each batch of inputs and targets: records.

    With a folder, the adapter is saved there every `save_every` steps and at the end;
    an interrupt leaves the last one that was saved. Other options go to train_model.
    """

    def on_step(trainer, record) -> None:
        if folder and (trainer.step % save_every == 0 or trainer.step == len(batches)):
            save_adapter(model, folder)

    config = TrainConfig(len(batches), learning_rate, warmup_steps=min(5, len(batches)),
                         weight_decay=0.0)  # fmt: skip
    return train_model(model, batches.__getitem__, config, on_step=on_step, **options)


def answer_log_probs(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probability (B,) and number (B,) of each row's targets but IGNORE.

    The output head, the largest product of all, is computed at those positions only.
    The batch may lie on another device than the model.
    """
    inputs, targets = (t.to(model.tok_emb.weight.device) for t in (inputs, targets))
    counts = targets != IGNORE
    logits = model.out_head(model.hidden_states(inputs)[counts])  # (N, V)
    losses = F.cross_entropy(logits, targets[counts], reduction="none")
    rows = counts.nonzero()[:, 0]
    return losses.new_zeros(len(inputs)).index_add(0, rows, -losses), counts.sum(dim=1)


@torch.no_grad()
def likelihoods(
    model: nn.Module,
    tokenizer: Tokenizer,
    entries: list[dict],
    template: str = "chatml",
) -> torch.Tensor:
    """Return the mean log-probability (N,) per token of each entry's output."""
    examples = encode_entries(entries, tokenizer, model.config.context_length, template)
    parts = []
    for start in range(0, len(examples), 16):
        batch = collate(examples[start : start + 16], end_token(tokenizer))
        total, count = answer_log_probs(model, *batch)
        parts.append(total / count)
    return torch.cat(parts)


RUBRIC = """You grade answers of a language model. Give 0 to 10 points: 10 for an \
answer that is right and has the form that was asked for, 5 if a part is wrong or \
missing, 0 if it is wrong.

Instruction: {instruction}
Input: {input}
A right answer: {output}
The answer to grade: {answer}

Reply with one line: Score: <points>"""


def read_score(text: str | None) -> int | None:
    """Return the points (0 to 10) in what a judge wrote, None if there are none.

    >>> read_score("A fine answer. **Score: 7/10**"), read_score("I cannot grade this.")
    (7, None)
    """
    for form in (
        r"score(?: is| of)?[\s:=*_]*N",
        r"N\s*(?:/|out of)\s*10\b",
        r"^[\s*]*N[\s*.]*$",
    ):
        pattern = form.replace("N", r"(-?\d+(?:\.\d+)?)")
        if found := re.findall(pattern, text or "", re.IGNORECASE):
            points = float(found[-1])  # a judge that thinks aloud decides at the end
            return round(points) if 0 <= points <= 10 else None
    return None


def make_judge(url: str | None = None, **options) -> openai.OpenAI | None:
    """Return a client for the server LLM_COURSE_JUDGE (or url), None if there is none.

    It waits 60 seconds and tries three times, unless options say otherwise; it logs no
    prompts.
    """
    url = url or os.environ.get("LLM_COURSE_JUDGE")
    logging.getLogger("openai").setLevel(logging.WARNING)
    settings = {"timeout": 60, "max_retries": 2} | options
    key = os.environ.get("OPENAI_API_KEY", "none")
    return openai.OpenAI(base_url=url, api_key=key, **settings) if url else None


def ask_judge(judge: openai.OpenAI, entry: dict, answer: str) -> int | None:
    """Return the judge's points (0 to 10) for an answer; None without a score."""
    fields = {key: entry[key] for key in ("instruction", "input", "output")}
    content = RUBRIC.format(**fields, answer=answer)
    name = os.environ.get("LLM_COURSE_JUDGE_MODEL", "llama3.2")
    messages = [{"role": "user", "content": content}]
    try:
        reply = judge.chat.completions.create(
            model=name, messages=messages, temperature=0
        )
        return read_score(reply.choices[0].message.content)
    except (openai.OpenAIError, ValueError, AttributeError, TypeError, IndexError):
        return None


def main(argv: list[str] | None = None) -> int:
    """Talk to a chat model in the terminal; return the exit status."""
    parser = argparse.ArgumentParser(
        "python -m shared.instruction", description=main.__doc__
    )
    parser.add_argument("--model", default="smollm2-135m", help="a name or folder")
    parser.add_argument("--adapter", help="folder of a fine-tuned adapter")
    parser.add_argument("--temperature", type=float, default=0.0)
    arguments = parser.parse_args(argv)
    try:
        model = load_pretrained(arguments.model)
        if arguments.adapter:
            load_adapter(model, arguments.adapter)
        chat = Conversation(model, tokenizer_for(arguments.model))
        print("Type a message; an empty one, or Ctrl-D, ends the conversation.")
        while text := input("you:   ").strip():
            print("model: ", end="", flush=True)
            write = lambda piece: print(piece, end="", flush=True)  # noqa: E731
            chat.reply(text, write=write, temperature=arguments.temperature)
            print()
    except (EOFError, KeyboardInterrupt):
        print()
    except (ValueError, OSError, RuntimeError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
