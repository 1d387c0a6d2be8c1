"""Tune SmolLM2 in several ways; count what it learns and forgets: forgetting.csv.

    python ch07_instruction/forgetting.py

The notebook ch07_instruction.ipynb tunes it once and shows the file. Here it is tuned
as there with three seeds, and each time asked again with its adapters at half strength;
then with a rehearsal (a part of the examples is replaced by answers that the plain
model itself gave to questions of the training set, and that were right), with a smaller
rate, and on the whole training set, which takes twice the steps. The plain model is
asked once more with its weights rounded to bfloat16: what changes then is no matter of
learning. Each row is written as soon as it is known; a row that is there already is not
made again. A run takes some five minutes on 2 CPU cores.
"""

import copy
from pathlib import Path

import pandas as pd
import torch

from shared.gpt_model import Decoder
from shared.instruction import (
    answer_all,
    collate,
    encode_entries,
    is_right,
    length_batches,
    load_conversations,
    tune,
)
from shared.lora import TARGETS, apply_lora, lora_layers, put_adapters
from shared.pretrained_weights import load_pretrained
from shared.support import write_whole
from shared.support.course import get_device, set_seed
from shared.text_data import Tokenizer

PATH = Path(__file__).resolve().parent / "forgetting.csv"
RANK, RATE, N_STEPS = 16, 1e-3, 100  # as in the notebook
ROUNDED, HALF = "plain, in bfloat16", "the same, half strength"
RUNS: list[tuple[str, int | str]] = [
    (ROUNDED, ""),
    ("as in the notebook", 123),
    ("as in the notebook", 1),
    ("as in the notebook", 2),
    ("rehearsal", 123),
    ("rehearsal", 1),
    ("rehearsal", 2),
    ("a third of the rate", 123),
    ("all conversations, 204 steps", 123),
]
COLUMNS = ["how", "seed", "closed right", "talks right", "learned", "forgotten"]


class Study:
    """A model, the data, and what the plain model answers."""

    def __init__(self) -> None:
        self.model: Decoder
        self.tokenizer: Tokenizer
        self.model, self.tokenizer = load_pretrained()
        self.model.to(get_device())
        entries = load_conversations()
        self.splits = {
            name: [e for e in entries if e["split"] == name]
            for name in ("train", "validation", "test")
        }
        checked = [e for e in self.splits["test"] if "accepted" in e]
        self.closed = [e for e in checked if e["kind"] != "talk"]
        self.talks = [e for e in checked if e["kind"] == "talk"]
        self.before = self.right(self.closed), self.right(self.talks)

    def answers(self, entries: list[dict]) -> list[str]:
        """Return the model's last answers to entries."""
        talks = [entry["turns"][:-1] for entry in entries]
        return answer_all(self.model, self.tokenizer, talks)

    def right(self, entries: list[dict]) -> torch.Tensor:
        """Return which of its last answers are right: (N,) bool."""
        pairs = zip(self.answers(entries), entries, strict=True)
        return torch.tensor([is_right(answer, entry) for answer, entry in pairs])

    def rehearsal(self) -> list[dict]:
        """Return the training set with the plain model's own answers where right."""
        mixed = []
        checked = [e for e in self.splits["train"] if "accepted" in e]
        own = dict(zip(map(id, checked), self.answers(checked), strict=True))
        for entry in self.splits["train"]:
            answer = own.get(id(entry), "")
            usable = answer[-1:] in (".", "!") and is_right(answer, entry)
            turns = [*entry["turns"][:-1], answer] if usable else entry["turns"]
            mixed.append(entry | {"turns": turns})
        return mixed

    def tune(self, how: str, seed: int) -> None:
        """Tune fresh adapters on the training set."""
        train = self.rehearsal() if how == "rehearsal" else self.splits["train"]
        rate = RATE / 3 if how == "a third of the rate" else RATE
        n_steps = None if how.startswith("all conversations") else N_STEPS
        set_seed(seed)
        apply_lora(self.model, RANK, 2 * RANK, (*TARGETS, "gate", "up", "project"))
        context = self.model.config.context_length
        encoded = encode_entries(train, self.tokenizer, context)
        generator = torch.Generator().manual_seed(seed)
        groups = length_batches(encoded, 4, generator)[:n_steps]
        for _ in tune(self.model, [collate(group) for group in groups], rate):
            pass  # nothing to do between two steps

    def row(self, how: str, seed: int | str) -> list:
        """Ask the model as it is now; return a row of the table."""
        after = self.right(self.closed), self.right(self.talks)
        was, now = torch.cat(self.before), torch.cat(after)
        rights = [int(right.sum()) for right in after]
        return [how, seed, *rights, int((now & ~was).sum()), int((was & ~now).sum())]

    def rows(self, how: str, seed: int | str) -> list[list]:
        """Return the rows of a run, and leave the plain model."""
        plain = self.model
        if how == ROUNDED:
            self.model = copy.deepcopy(plain).bfloat16()
            rows = [self.row(how, seed)]
            self.model = plain
            return rows
        self.tune(how, int(seed))
        rows = [self.row(how, seed)]
        if how == "as in the notebook":
            for layer in lora_layers(plain).values():
                layer.scale /= 2
            rows.append(self.row(HALF, seed))
        put_adapters(plain, {})
        return rows


def main() -> None:
    """Fill the table, run by run."""
    table = pd.read_csv(PATH, dtype=str).fillna("") if PATH.exists() else None
    rows = [] if table is None else table.values.tolist()
    made = {(row[0], row[1]) for row in rows}
    study = Study()
    if not rows:
        rows.append(study.row("plain", ""))
    for how, seed in RUNS:
        if (how, str(seed)) in made:
            continue
        rows += study.rows(how, seed)
        print(*rows[-1], flush=True)
        write_whole(PATH, pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))


if __name__ == "__main__":
    main()
