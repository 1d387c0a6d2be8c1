"""Train models of four sizes on Tiny Tales, and write their losses to scaling.csv.

    python ch05_pretraining/scaling.py

Takes some four minutes on 2 CPU cores. The notebook of this chapter plots the file.
"""

import csv

import torch
from tiny_tales_gpt import CONTEXT, HERE, TaleData

from shared.gpt_model import GPTConfig, GPTModel, count_parameters
from shared.pretraining import TrainConfig, train_model

SIZES = [(16, 2), (32, 2), (64, 2), (128, 2)]  # emb_dim, n_layers
STEPS = 1500


def main() -> None:
    data, rows = TaleData(), []
    for emb_dim, n_layers in SIZES:
        torch.manual_seed(123)
        config = GPTConfig(data.tokenizer.n_vocab, CONTEXT, emb_dim, n_heads=4, n_layers=n_layers)
        model = GPTModel(config)
        settings = TrainConfig(STEPS, 1e-2, muon=True, warmup_steps=20, final_share=0.05)
        history = train_model(
            model, data, settings, val_batches=data.val_batches, eval_every=STEPS // 20
        )
        for record in history:
            rows.append(
                {
                    "parameters": count_parameters(model),
                    "tokens": record["tokens"],
                    "val_loss": round(record["val_loss"], 4),
                    "floor": round(data.floor, 4),
                }
            )
    with (HERE / "scaling.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
