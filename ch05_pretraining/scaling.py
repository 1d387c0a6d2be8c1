"""Train models of four sizes on Tiny Tales, and write their losses to scaling.csv.

    python ch05_pretraining/scaling.py

Every size is trained for several numbers of steps, each time from the start and with a
schedule of its own. Takes some eight minutes on 2 CPU cores. The notebook of this
chapter plots the file.
"""

import csv
from io import StringIO
from itertools import product

import torch
from tiny_tales_gpt import CONTEXT, HERE, TaleData

from shared.gpt_model import GPTConfig, GPTModel, count_parameters
from shared.pretraining import TrainConfig, Trainer, evaluate, train
from shared.support import write_whole

WIDTHS = (16, 32, 64, 128)  # emb_dim; all have 2 layers
STEPS = (125, 250, 500, 1000, 2000)


def main() -> None:
    data = TaleData()
    rows = []
    for emb_dim, steps in product(WIDTHS, STEPS):
        torch.manual_seed(123)
        model = GPTModel(
            GPTConfig(data.tokenizer.n_vocab, CONTEXT, emb_dim, n_heads=4, n_layers=2)
        )
        config = TrainConfig(steps, 1e-2, muon=True, warmup_steps=20, final_share=0.02)
        trainer = Trainer(model, config)
        for _ in train(trainer, data.training()):
            pass
        row = {
            "parameters": count_parameters(model),
            "tokens": trainer.tokens,
            "val_loss": round(evaluate(model, data.held_out), 4),
            "floor": round(data.floor, 4),
        }
        rows.append(row)
    table = StringIO()
    writer = csv.DictWriter(table, fieldnames=rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(HERE / "scaling.csv", table.getvalue())


if __name__ == "__main__":
    main()
