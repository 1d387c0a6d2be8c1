"""Tune a model on your own questions and answers; chat.py talks to the result.

    python ch07_instruction/tune.py --conversations my_questions.json \\
        --model runs/mine/model --out runs/mine/chat
    python ch07_instruction/tune.py --conversations my_questions.json \\
        --out runs/mine/adapter

The first trains all weights of a GPT that pretrain.py has made, and writes a model, for
chat.py --model. The second trains adapters for SmolLM2, or for another Llama that
--model names, with chapter 7's settings, and writes them for chat.py --adapter.

The file is JSON, a list of {"turns": [question, answer, ...]}, or of entries in
Alpaca's format. Those with "split": "validation" are held out, or, if there are none,
every tenth; those with "test" are left out. The loss on what is held out, and two
answers, are shown before and after. What is wrong is named, and the exit status is then
1. Ctrl-C ends the program; nothing is written then.
"""

import argparse
import math
import sys
from pathlib import Path

import torch

from shared.gpt_model import Decoder, GPTModel
from shared.instruction import (
    answer_all,
    collate,
    encode_entries,
    length_batches,
    load_conversations,
    tune,
)
from shared.lora import TARGETS, apply_lora, save_adapter
from shared.pretrained_weights import Conversation, load_pretrained
from shared.pretraining import evaluate, save_model
from shared.support import require_whole
from shared.support.course import get_device, set_seed
from shared.text_data import END_OF_TEXT
from shared.tokenizer import BPETokenizer

RANK, BATCH = 16, 4  # as in chapter 7


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the settings of a command line, by default this program's."""
    parser = argparse.ArgumentParser("tune.py", description=__doc__.split("\n")[0])
    add, default = parser.add_argument, " (default: %(default)s)"
    add("--conversations", required=True, metavar="FILE", help="your questions, JSON")
    add("--out", required=True, type=Path, metavar="DIR", help="a new folder")
    add("--model", default="smollm2-135m", help="a name or a folder" + default)
    steps = f"of {BATCH} conversations each (default: three rounds)"
    add("--steps", type=int, metavar="N", help=steps)
    rate = "its highest value"
    add("--learning-rate", type=float, default=1e-3, metavar="X", help=rate + default)
    add("--seed", type=int, default=123, metavar="N", help="of all chance" + default)
    return parser.parse_args(argv)


def load(path: str) -> tuple[list[dict], list[dict]]:
    """Return entries to learn from, and those held out; ValueError for too few."""
    entries = [e for e in load_conversations(path) if e.get("split") != "test"]
    held_out = [e for e in entries if e.get("split") == "validation"]
    held_out = held_out or entries[9::10] or entries[-1:]
    learned = [e for e in entries if e not in held_out]  # nor a copy of one
    if not learned:
        raise ValueError(f"{path} has nothing to learn from: one more entry is needed")
    return learned, held_out


def training_batches(examples: list, n_steps: int, seed: int) -> list[tuple]:
    """Return a batch for each step; all examples come before one comes again."""
    generator = torch.Generator().manual_seed(seed)
    groups: list[list] = []
    while len(groups) < n_steps:
        groups += length_batches(examples, BATCH, generator)
    return [collate(group) for group in groups[:n_steps]]


def judged(
    model: Decoder, tokenizer: BPETokenizer, entries: list[dict]
) -> tuple[float, list[str]]:
    """Return a model's loss on entries, and its answers to the first two."""
    examples = encode_entries(entries, tokenizer, model.config.context_length)
    groups = [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]
    talks = [entry["turns"][:-1] for entry in entries[:2]]
    return evaluate(model, map(collate, groups)), answer_all(model, tokenizer, talks)


def run(settings: argparse.Namespace) -> None:
    """Load, tune, save, and show what has changed."""
    if settings.out.exists():
        raise ValueError(f"{settings.out} exists already: choose another folder")
    learned, held_out = load(settings.conversations)
    rounds = 3 * math.ceil(len(learned) / BATCH)
    n_steps = rounds if settings.steps is None else settings.steps
    require_whole(steps=n_steps)
    model, tokenizer = load_pretrained(settings.model)
    Conversation(model, tokenizer)  # refuses a tokenizer without the tokens of a chat
    examples = encode_entries(learned, tokenizer, model.config.context_length)
    batches = training_batches(examples, n_steps, settings.seed)
    set_seed(settings.seed)
    model.to(get_device())
    own = isinstance(model, GPTModel)  # small enough to move every weight
    if not own:
        apply_lora(model, RANK, 2 * RANK, (*TARGETS, "gate", "up", "project"))
    print(f"{len(learned)} conversations to learn from, {len(held_out)} held out")
    loss, before = judged(model, tokenizer, held_out)
    for _ in tune(model, batches, settings.learning_rate, muon=own):
        pass
    new_loss, after = judged(model, tokenizer, held_out)
    if own:
        save_model(model, settings.out, tokenizer)
    else:
        save_adapter(model, settings.out)
    print("loss on those held out, nats per token:", end=" ")
    print(f"{loss:.2f} before, {new_loss:.2f} after")
    for entry, old, new in zip(held_out, before, after, strict=False):
        question, answer = entry["turns"][-2:]
        old = old.removeprefix(END_OF_TEXT)  # by which it says that a text begins
        print(f"\nyou:    {question}\nbefore: {old}\nafter:  {new}\nyours:  {answer}")
    chat = "--model" if own else f"--model {settings.model} --adapter"
    print(f"\nto talk to it: python ch07_instruction/chat.py {chat} {settings.out}")


def main(argv: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    try:
        run(parse(argv))
    except KeyboardInterrupt:
        print("\nstopped: nothing was written", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ArithmeticError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.exit(main())
