"""Train adapters of several ranks on 300 messages; write test accuracies to ranks.csv.

    python ch06_classification/ranks.py

Takes about ten minutes on 2 CPU cores. The notebook ch06_lora.ipynb shows the file.
"""

from pathlib import Path

import pandas as pd
import torch

from shared.classification import (
    Classifier,
    encode_messages,
    load_messages,
    measure,
    pad_batch,
    train_classifier,
)
from shared.gpt_model import count_parameters
from shared.lora import apply_lora
from shared.pretrained_weights import load_pretrained, tokenizer_for


def main() -> None:
    table, tokenizer, rows = load_messages(), tokenizer_for(), []

    def messages(split: str, n: int) -> tuple[list[list[int]], torch.Tensor]:
        some = table[table["split"] == split][:n]
        is_spam = torch.tensor((some["label"] == "spam").to_numpy())
        return encode_messages(some["text"], tokenizer, 256), is_spam.long()

    def from_ids(classifier: Classifier, rows: list[list[int]]) -> torch.Tensor:
        return classifier(*pad_batch(rows, tokenizer.eot_token))

    train = messages("train", 300)
    val = messages("validation", 60)
    test = messages("test", 230)
    for rank in (1, 2, 4, 8, 16):
        torch.manual_seed(123)
        model = load_pretrained()
        classifier = Classifier(model, n_trained=len(model.blocks))
        apply_lora(classifier, rank=rank)
        model.out_head.requires_grad_(True)
        trained = count_parameters(classifier, trainable=True)
        settings = {
            "epochs": 3,
            "learning_rate": 3e-4,
            "batch_size": 4,
            "forward": from_ids,
        }
        train_classifier(classifier, train, val, **settings)
        accuracy = measure(classifier, test, from_ids)["accuracy"]
        rows.append([rank, trained, f"{accuracy:.1%}"])
        print(*rows[-1], flush=True)
    columns = ["rank", "trained weights", "test accuracy"]
    path = Path(__file__).resolve().parent / "ranks.csv"
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)


if __name__ == "__main__":
    main()
