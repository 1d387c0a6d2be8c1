"""Train the spam filter in several ways and write their test accuracies to results.csv.

    python ch06_classification/compare.py

Takes about ten minutes on 2 CPU cores. Rows that the file has already are not computed
again. The notebook of this chapter shows the file.
"""

import random
from pathlib import Path

import pandas as pd
import torch

from shared.classification import (
    Classifier,
    encode_messages,
    frozen_states,
    load_messages,
    measure,
    train_classifier,
)
from shared.gpt_model import GPTModel
from shared.llama_model import SMOLLM2_135M, LlamaModel
from shared.pretrained_weights import load_pretrained, tokenizer_for

HERE = Path(__file__).resolve().parent
TALES = HERE.parent / "ch05_pretraining" / "tiny_tales_gpt"


class OtherReading(Classifier):
    """A classifier that reads the first token, or the mean of all."""

    reading = "first token"

    def upper(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        for block in self.model.blocks[self.n_frozen :]:
            x = block(x)
        x = self.model.final_norm(x)
        real = torch.arange(x.shape[1]) < lengths[:, None]  # (B, T)
        mean = (x * real[..., None]).sum(dim=1) / lengths[:, None]
        return self.model.out_head(
            mean if self.reading == "mean of tokens" else x[:, 0]
        )


def random_model() -> LlamaModel:
    torch.manual_seed(123)
    return LlamaModel(SMOLLM2_135M)


def random_tiny_model() -> GPTModel:
    torch.manual_seed(123)
    return GPTModel(load_pretrained(TALES).config)


def main() -> None:
    path = HERE / "results.csv"
    columns = ["model", "trained", "read at", "test accuracy"]
    rows = pd.read_csv(path).values.tolist() if path.exists() else []
    done, table = [row[:3] for row in rows], load_messages()
    labels = torch.tensor((table["label"] == "spam").to_numpy()).long()
    places = {
        split: table.index[table["split"] == split].tolist()
        for split in set(table["split"])
    }
    blocks = {
        "SmolLM2": 30,
        "random weights": 30,
        "Tiny Tales GPT": 2,
        "the same, random": 2,
    }
    makers = {"SmolLM2": load_pretrained, "random weights": random_model}
    makers["Tiny Tales GPT"] = lambda: load_pretrained(TALES)
    makers["the same, random"] = random_tiny_model
    runs = [
        ("SmolLM2", 1, "last token"), ("SmolLM2", 1, "mean of tokens"),
        ("SmolLM2", 1, "last column (a mistake)"), ("SmolLM2", 1, "first token"),
        ("SmolLM2", 0, "last token"), ("SmolLM2", 30, "last token"),
        ("Tiny Tales GPT", 2, "last token"), ("the same, random", 2, "last token"),
        ("random weights", 1, "last token"),
        ("random weights", 30, "last token"),
    ]  # fmt: skip
    # Kept: what the frozen part makes of the messages, for the run after
    order, kept = [], {}
    for name, n_trained, reading in runs:
        what = {0: "head and norm", blocks[name]: "all blocks"}.get(
            n_trained, "last block"
        )
        order.append([name, what, reading])
        if order[-1] in done:
            continue
        tokenizer = tokenizer_for(TALES if blocks[name] == 2 else "smollm2-135m")
        model = makers[name]()
        limit = min(256, model.config.context_length)
        ids = encode_messages(table["text"], tokenizer, limit)
        if "mistake" in reading:  # as if longer messages shared the batch
            draw = random.Random(123)
            pad = [tokenizer.eot_token]
            ids = [(row + draw.randrange(30) * pad)[:limit] for row in ids]
        torch.manual_seed(123)
        kind = (
            OtherReading if reading in ("first token", "mean of tokens") else Classifier
        )
        classifier = kind(model, n_trained=n_trained).eval()
        classifier.reading = reading
        key = (name, n_trained, "mistake" in reading)
        if key not in kept:
            kept = {key: frozen_states(classifier, ids, tokenizer.eot_token)}
        states = kept[key]
        parts = {
            k: ([states[i] for i in where], labels[where])
            for k, where in places.items()
        }
        large = n_trained > 2  # all blocks: slow, and quick to learn by heart
        options = {"learning_rate": 1e-4, "epochs": 3} if large else {}
        train_classifier(classifier, parts["train"], parts["validation"], **options)
        accuracy = measure(classifier, parts["test"])["accuracy"]
        rows.append([name, what, reading, f"{accuracy:.1%}"])
        print(*rows[-1], flush=True)
    rows.sort(key=lambda row: order.index(row[:3]))
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)


if __name__ == "__main__":
    main()
