"""Tune SmolLM2 in several ways; count what it learns and forgets: forgetting.csv.

    python ch07_instruction/forgetting.py

The notebook ch07_instruction.ipynb tunes it once and shows the file. Here it is tuned
as there with three seeds, then with a smaller rate, and then with a rehearsal: a part
of the examples is replaced by answers that the plain model itself gave to questions of
the training set, and that were right. Each row is written as soon as it is known; a row
that is there already is not made again. A run takes some five minutes on 2 CPU cores.
"""

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
from shared.lora import TARGETS, apply_lora, put_adapters
from shared.pretrained_weights import load_pretrained
from shared.pretraining import evaluate
from shared.support import write_whole
from shared.support.course import get_device, set_seed
from shared.text_data import Tokenizer

PATH = Path(__file__).resolve().parent / "forgetting.csv"
RANK, RATE, N_STEPS = 16, 1e-3, 100
RUNS = [
    ("as in the notebook", 123, RATE),
    ("rehearsal", 123, RATE),
    ("a third of the rate", 123, RATE / 3),
    ("as in the notebook", 1, RATE),
    ("rehearsal", 1, RATE),
    ("as in the notebook", 2, RATE),
    ("rehearsal", 2, RATE),
]
COLUMNS = [
    "how", "seed", "rate", "validation loss", "closed right", "talks right",
    "learned", "forgotten",
]  # fmt: skip


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

    def run(self, how: str, seed: int, rate: float) -> list:
        """Tune fresh adapters on the training set; return a row of the table."""
        train = self.rehearsal() if how == "rehearsal" else self.splits["train"]
        set_seed(seed)
        targets = (*TARGETS, "gate", "up", "project")
        model = self.model
        apply_lora(model, RANK, 2 * RANK, targets)
        context = model.config.context_length
        encoded = encode_entries(train, self.tokenizer, context)
        generator = torch.Generator().manual_seed(seed)
        groups = length_batches(encoded, 4, generator)[:N_STEPS]
        for _ in tune(model, [collate(group) for group in groups], rate):
            pass  # nothing to do between two steps
        encoded = encode_entries(self.splits["validation"], self.tokenizer, context)
        batches = [collate(encoded[n : n + 8]) for n in range(0, 40, 8)]
        loss = evaluate(model, batches)
        after = self.right(self.closed), self.right(self.talks)
        put_adapters(model, {})  # the plain model again
        was, now = torch.cat(self.before), torch.cat(after)
        rights = [int(right.sum()) for right in after]
        learned, forgotten = int((now & ~was).sum()), int((was & ~now).sum())
        return [how, seed, f"{rate:.2g}", f"{loss:.2f}", *rights, learned, forgotten]


def main() -> None:
    """Fill the table, run by run."""
    rows = pd.read_csv(PATH, dtype=str).values.tolist() if PATH.exists() else []
    made = {(row[0], row[1]) for row in rows}
    study = Study()
    if not rows:
        rights = [int(right.sum()) for right in study.before]
        rows.append(["the plain model", "", "", "", *rights, 0, 0])
    for how, seed, rate in RUNS:
        if (how, str(seed)) in made:
            continue
        rows.append(study.run(how, seed, rate))
        print(*rows[-1], flush=True)
        write_whole(PATH, pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))


if __name__ == "__main__":
    main()
