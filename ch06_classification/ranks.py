"""Train adapters of several ranks on 300 messages; write test accuracies to ranks.csv.

    python ch06_classification/ranks.py

Takes about ten minutes on 2 CPU cores. The notebook ch06_lora.ipynb shows the file.
"""

from pathlib import Path

import pandas as pd
import torch

from shared.classification import (
    Classifier,
    encode_labels,
    encode_messages,
    load_messages,
    predict,
    train_classifier,
)
from shared.gpt_model import count_parameters
from shared.lora import apply_lora
from shared.pretrained_weights import load_pretrained

COLUMNS = ["rank", "trained weights", "test accuracy"]
PATH = Path(__file__).resolve().parent / "ranks.csv"


def run(rank: int) -> list:
    """Train adapters of this rank, and a head; return a row of the table."""
    torch.manual_seed(123)
    model, tokenizer = load_pretrained()
    table = load_messages()

    def messages(split: str, n: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        some = table[table["split"] == split][:n]
        rows = encode_messages(some["text"], tokenizer, model.config.context_length)
        return rows, encode_labels(some["label"])

    classifier = Classifier(model, n_trained=len(model.blocks))
    apply_lora(classifier, rank=rank)
    model.out_head.requires_grad_(True)
    trained = count_parameters(classifier, trainable=True)
    sets = messages("train", 300), messages("validation", 60)
    history = train_classifier(
        classifier, *sets, epochs=3, learning_rate=3e-4, batch_size=4
    )
    print([f"{record['val_loss']:.3f}" for record in history], "on validation")
    rows, labels = messages("test", 230)
    accuracy = (predict(classifier, rows) == labels).float().mean()
    return [rank, trained, f"{accuracy:.1%}"]


def main() -> None:
    """Fill the table, rank by rank."""
    rows = []
    for rank in (1, 2, 4, 8, 16):
        rows.append(run(rank))
        print(*rows[-1], flush=True)
    pd.DataFrame(rows, columns=COLUMNS).to_csv(PATH, index=False)


if __name__ == "__main__":
    main()
