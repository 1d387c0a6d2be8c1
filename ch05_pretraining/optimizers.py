"""Train one model with AdamW and with Muon on Tiny Tales, into optimizers.csv.

    python ch05_pretraining/optimizers.py

First each optimizer tries three learning rates with one seed. Then each trains with
its best rate and three other seeds. All runs see the same tales in the same order, and
start from the same weights for a seed. Takes some six minutes on one CPU core. Runs
that optimizers.csv has already are left out, so that one may stop and go on. The
notebook of this chapter shows the file.
"""

import csv
from collections.abc import Iterator
from io import StringIO
from itertools import islice

import torch
from tiny_tales_gpt import CONTEXT, HERE, TaleData

from shared.gpt_model import GPTConfig, GPTModel
from shared.pretraining import IGNORE, TrainConfig, Trainer, evaluate, train
from shared.support import write_whole
from shared.support.tiny_tales import tales

PATH = HERE / "optimizers.csv"
COLUMNS = "run optimizer rate seed step val_loss floor".split()
EMB_DIM, STEPS, WARMUP, EVERY = 64, 400, 20, 100
SEEDS = (1, 2, 3)
RATES = {"AdamW": (2.5e-3, 5e-3, 1e-2), "Muon": (1e-2, 2e-2, 4e-2)}  # with seed 0


def read() -> list[dict]:
    """Return the rows of optimizers.csv, as texts."""
    if not PATH.exists():
        return []
    with PATH.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(rows: list[dict]) -> None:
    """Write all rows, as a whole or not at all: the runs before took long."""
    table = StringIO()
    writer = csv.DictWriter(table, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(PATH, table.getvalue())


def key(row: dict) -> tuple:
    """Return which run a row belongs to."""
    return row["run"], row["optimizer"], float(row["rate"]), int(row["seed"])


def best_rate(optimizer: str, rows: list[dict]) -> float:
    """Return the tried rate with the lowest loss at the end, seed 0."""
    tried = [
        (float(row["val_loss"]), float(row["rate"]))
        for row in rows
        if (row["run"], row["optimizer"]) == ("a rate", optimizer)
        and int(row["step"]) == STEPS
    ]
    return min(tried)[1]


def floor(data: TaleData) -> float:
    """Return what the true probabilities cost on the held-out tales, per token."""
    _, targets = data.held_out[0]
    nats = -sum(tale.log_prob for tale in tales(999, len(targets)))
    return nats / int((targets != IGNORE).sum())


def measure(
    name: str, optimizer: str, rate: float, seed: int, data: TaleData, batches: list
) -> Iterator[dict]:
    """Train one model; yield a row for every evaluation."""
    torch.manual_seed(seed)
    model = GPTModel(GPTConfig(data.tokenizer.n_vocab, CONTEXT, EMB_DIM, 4, 2))
    muon = optimizer == "Muon"
    config = TrainConfig(STEPS, rate, muon, warmup_steps=WARMUP, final_share=0.02)
    for record in train(Trainer(model, config), batches, progress=False):
        if record["step"] % EVERY == 0:
            losses = round(evaluate(model, data.held_out[:1]), 4), round(floor(data), 4)
            row = (name, optimizer, rate, seed, record["step"], *losses)
            yield dict(zip(COLUMNS, row, strict=True))


def main() -> None:
    data, rows = TaleData(), read()
    batches = list(islice(data.training(), STEPS))
    plan = [("a rate", name, rate, 0) for name in RATES for rate in RATES[name]]
    plan += [("a seed", name, 0.0, seed) for seed in SEEDS for name in RATES]
    for name, optimizer, rate, seed in plan:
        rate = rate or best_rate(optimizer, rows)
        done = {key(row) for row in rows}
        if (name, optimizer, rate, seed) not in done:
            rows += measure(name, optimizer, rate, seed, data, batches)
            write(rows)
            print(*rows[-1].values(), flush=True)


if __name__ == "__main__":
    main()
