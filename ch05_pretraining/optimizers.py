"""Train one model with AdamW and with Muon on Tiny Tales, into optimizers.csv.

    python ch05_pretraining/optimizers.py

First every optimizer tries three learning rates with one seed. Then the best rate of
each is used with three other seeds, for 200 steps; for AdamW also for twice as many,
for Muon also without the fall of the rate at the end. All runs see the same tales in
the same order, and start from the same weights for a seed. Takes two or three minutes
on one CPU core. Runs that optimizers.csv has already are left out, so that one may stop
and go on. The notebook of this chapter shows the file.
"""

import csv
from collections.abc import Iterator
from io import StringIO
from itertools import islice

import torch
from tiny_tales_gpt import CONTEXT, HERE, TaleData

from shared.gpt_model import GPTConfig, GPTModel
from shared.pretraining import TrainConfig, Trainer, evaluate, train
from shared.support import write_whole

PATH = HERE / "optimizers.csv"
COLUMNS = "run optimizer rate seed step val_loss floor".split()
EMB_DIM, STEPS, WARMUP, EVERY = 32, 200, 20, 50
TRIED = (5e-3, 1e-2, 2e-2)  # rates, with seed 0
SEEDS = (1, 2, 3)
RUNS: dict[str, dict] = {  # what is changed, for the optimizer with its best rate
    "AdamW": {},
    "Muon": {},
    "Muon, constant rate": {"final_share": 1.0},
    "AdamW, twice the steps": {"max_steps": 2 * STEPS},
}


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


def measure(
    name: str, optimizer: str, rate: float, seed: int, data: TaleData, batches: list
) -> Iterator[dict]:
    """Train one model; yield a row for every evaluation."""
    torch.manual_seed(seed)
    model = GPTModel(GPTConfig(data.tokenizer.n_vocab, CONTEXT, EMB_DIM, 4, 2))
    settings: dict = {"max_steps": STEPS, "warmup_steps": WARMUP, "final_share": 0.02}
    settings |= RUNS.get(name, {})
    config = TrainConfig(learning_rate=rate, muon=optimizer == "Muon", **settings)
    for record in train(Trainer(model, config), batches, progress=False):
        if record["step"] % EVERY == 0:
            losses = round(evaluate(model, data.held_out), 4), round(data.floor, 4)
            row = (name, optimizer, rate, seed, record["step"], *losses)
            yield dict(zip(COLUMNS, row, strict=True))


def main() -> None:
    data, rows = TaleData(), read()
    batches = list(islice(data.training(), 2 * STEPS))
    plan = [("a rate", name, r, 0) for r in TRIED for name in ("AdamW", "Muon")]
    plan += [(name, name.split(",")[0], 0.0, seed) for name in RUNS for seed in SEEDS]
    for name, optimizer, rate, seed in plan:
        rate = rate or best_rate(optimizer, rows)
        done = {key(row) for row in rows}
        if (name, optimizer, rate, seed) not in done:
            rows += measure(name, optimizer, rate, seed, data, batches)
            write(rows)
            print(*rows[-1].values(), flush=True)


if __name__ == "__main__":
    main()
