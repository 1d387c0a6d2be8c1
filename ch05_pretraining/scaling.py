"""Train models of four sizes on Tiny Tales, and write their losses to scaling.csv.

    python ch05_pretraining/scaling.py

Every size is trained for several numbers of steps, each time from the start and with a
schedule of its own. Takes some eight minutes on 2 CPU cores. The notebook of this
chapter plots the file.
"""

import csv

import torch
from tiny_tales_gpt import CONTEXT, HERE, TaleData

from shared.gpt_model import GPTConfig, GPTModel, count_parameters
from shared.pretraining import TrainConfig, train_model

WIDTHS = (16, 32, 64, 128)  # emb_dim; all have 2 layers
STEPS = (125, 250, 500, 1000, 2000)


def main() -> None:
    data, rows = TaleData(), []
    for emb_dim in WIDTHS:
        for steps in STEPS:
            torch.manual_seed(123)
            config = GPTConfig(
                data.tokenizer.n_vocab, CONTEXT, emb_dim, n_heads=4, n_layers=2
            )
            model = GPTModel(config)
            settings = TrainConfig(
                steps, 1e-2, muon=True, warmup_steps=20, final_share=0.02
            )
            (end,) = train_model(model, data, settings, val_batches=data.val_batches)
            rows.append(
                {
                    "parameters": count_parameters(model),
                    "tokens": end["tokens"],
                    "val_loss": round(end["val_loss"], 4),
                    "floor": round(data.floor, 4),
                }
            )
    with (HERE / "scaling.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
