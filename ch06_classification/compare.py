"""Train the spam filter in several ways and write their test accuracies to results.csv.

    python ch06_classification/compare.py

Takes about twelve minutes on 2 CPU cores. Rows that the file has already are not
computed again: delete it to start afresh. Both notebooks of this chapter show the file.
"""

import csv
import random
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from shared.classification import (
    Classifier,
    encode_labels,
    encode_messages,
    frozen_states,
    load_messages,
    predict,
    train_classifier,
)
from shared.gpt_model import Decoder, GPTModel
from shared.llama_model import LlamaModel
from shared.pretrained_weights import load_pretrained
from shared.support import write_whole
from shared.text_data import Tokenizer

HERE = Path(__file__).resolve().parent
PATH = HERE / "results.csv"
TALES = HERE.parent / "ch05_pretraining" / "tiny_tales_gpt"

COLUMNS = ["model", "trained", "read at", "test accuracy"]
MISTAKE = "last column (a mistake)"
RUNS = [  # model, how many blocks are trained, reading
    ("SmolLM2", 1, "last token"),
    ("SmolLM2", 1, "mean of tokens"),
    ("SmolLM2", 1, MISTAKE),
    ("SmolLM2", 1, "first token"),
    ("SmolLM2", 0, "last token"),
    ("SmolLM2", 30, "last token"),
    ("Tiny Tales GPT", 2, "last token"),
    ("Tiny Tales GPT, random", 2, "last token"),
    ("SmolLM2, random", 1, "last token"),
    ("SmolLM2, random", 30, "last token"),
]
TRAINED = {0: "head and norm", 1: "last block", 2: "all blocks", 30: "all blocks"}
RANDOM: dict[str, Any] = {
    "Tiny Tales GPT, random": GPTModel,
    "SmolLM2, random": LlamaModel,
}


class FirstToken(Classifier):
    """A classifier that reads the first token."""

    def upper(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, classes) of what lower gave."""
        x = self.run(x, self.model.blocks[self.n_frozen :])
        return self.model.out_head(self.model.final_norm(x[:, 0]))


class MeanOfTokens(Classifier):
    """A classifier that reads the mean of all tokens."""

    def upper(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, classes) of what lower gave for these lengths."""
        x = self.model.final_norm(self.run(x, self.model.blocks[self.n_frozen :]))
        real = torch.arange(x.shape[1]) < lengths[:, None]  # (B, T)
        mean = (x * real[..., None]).sum(dim=1) / lengths[:, None]  # (B, D)
        return self.model.out_head(mean)


KINDS = {"first token": FirstToken, "mean of tokens": MeanOfTokens}


def make_model(name: str) -> tuple[Decoder, Tokenizer]:
    """Return the model of a row, and its tokenizer."""
    small = name.startswith("Tiny Tales GPT")
    model, tokenizer = load_pretrained(TALES if small else "smollm2-135m")
    torch.manual_seed(123)
    if name in RANDOM:
        model = RANDOM[name](model.config).eval()
    return model, tokenizer


def run(name: str, n_trained: int, reading: str) -> float:
    """Train a classifier; return its accuracy on the test messages."""
    table = load_messages()
    labels = encode_labels(table["label"])
    model, tokenizer = make_model(name)
    rows = encode_messages(table["text"], tokenizer, 10_000)
    if reading == MISTAKE:  # as if longer messages shared the batch
        draw = random.Random(123)
        padding = torch.full((30,), tokenizer.eot_token)
        rows = [torch.cat([row, padding[: draw.randrange(30)]]) for row in rows]
    # What does not fit a small model's context is cut; SmolLM2's holds all.
    rows = [row[: model.config.context_length] for row in rows]
    torch.manual_seed(123)
    classifier = KINDS.get(reading, Classifier)(model, n_trained=n_trained)
    states = frozen_states(classifier, rows)

    def part(split: str) -> tuple[list[torch.Tensor], torch.Tensor]:
        places = table.index[table["split"] == split].tolist()
        return [states[i] for i in places], labels[places]

    settings: dict[str, Any] = {}
    if n_trained > 2:  # all blocks: slow, and quick to learn by heart
        settings = {"epochs": 3, "learning_rate": 1e-4}
    train_classifier(classifier, part("train"), part("validation"), **settings)
    test_rows, test_labels = part("test")
    return (predict(classifier, test_rows) == test_labels).float().mean().item()


def main() -> None:
    """Fill the table, row by row."""
    found: dict[tuple, str] = {}
    if PATH.exists():
        with PATH.open(encoding="utf-8", newline="") as file:
            found = {tuple(row[:3]): row[3] for row in csv.reader(file)}
    order = [(name, TRAINED[n_trained], reading) for name, n_trained, reading in RUNS]
    for key, settings in zip(order, RUNS, strict=True):
        if key not in found:
            found[key] = f"{run(*settings):.1%}"
            print(*key, found[key], flush=True)
            table = StringIO()
            writer = csv.writer(table, lineterminator="\n")
            writer.writerows([COLUMNS, *([*k, found[k]] for k in order if k in found)])
            write_whole(PATH, table.getvalue())


if __name__ == "__main__":
    main()
