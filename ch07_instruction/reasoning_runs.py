"""Train the sums model by checked answers with three seeds, into reasoning_runs.csv.

    python ch07_instruction/reasoning_runs.py [FILE]

Each run starts from sums_gpt/, as in ch07_reasoning.ipynb, with questions and draws of
its own; a fourth run has the loss of Dr. GRPO, a fifth a learning rate that is too
large. Every tenth step a model answers the 300 test questions greedily. Takes about a
minute a run on one CPU core. Runs that the file has already are left out, so that one
may stop and go on.
"""

import csv
import sys
from functools import partial
from hashlib import sha256
from io import StringIO
from pathlib import Path

import torch

from shared.pretraining import TrainConfig, Trainer, load_model, train
from shared.reasoning import (
    checked_sum,
    draw_sums,
    group_batches,
    policy_loss,
    sample_groups,
)
from shared.support import write_whole

HERE = Path(__file__).resolve().parent
STEPS, GROUPS, SIZE, TOKENS = 60, 16, 8, 44
RATE, TOO_LARGE = 5e-5, 1e-3  # the first chosen on validation questions
RUNS = [(RATE, "GRPO", seed) for seed in (1, 2, 3)]
RUNS += [(RATE, "Dr. GRPO", 1), (TOO_LARGE, "GRPO", 1)]
TEST = draw_sums(300, "test", 0)
HASH = sha256("\n".join(TEST).encode()).hexdigest()[:16]


def mean(values) -> float:
    """Return the mean of some numbers, rounded as the table has it."""
    values = list(values)
    return round(sum(values) / len(values), 4)


def run(rate: float, loss: str, seed: int) -> list[dict]:
    """Train once; return a row for every tenth step."""
    torch.manual_seed(seed)
    model, tokenizer = load_model(HERE / "sums_gpt")
    encode = tokenizer.encode_ordinary
    questions = draw_sums(GROUPS * STEPS, "train", 100 + seed)
    steps = [questions[n : n + GROUPS] for n in range(0, len(questions), GROUPS)]
    log: list[dict] = []
    rows = []

    def note(step: int) -> None:
        prompts = [encode(question) for question in TEST]
        *_, texts = sample_groups(
            model, tokenizer, prompts, 1, max_new_tokens=TOKENS, temperature=0.0
        )
        recent = log[-10:]
        drawn = [text for entry in recent for text in entry["texts"]]
        rewards = [r for entry in recent for r in entry["rewards"].flatten().tolist()]
        row: dict = {"rate": rate, "loss": loss, "seed": seed, "step": step}
        row["greedy"] = round(100 * mean(map(checked_sum, TEST, texts)), 1)
        row["reward"] = mean(rewards) if drawn else ""
        row["written"] = mean("=" in text for text in drawn) if drawn else ""
        row["tokens"] = mean(len(text) for text in drawn) if drawn else ""
        rows.append(row | {"test_sha256": HASH})
        print(*row.values(), flush=True)

    note(0)
    batches = group_batches(
        model,
        tokenizer,
        steps,
        checked_sum,
        log,
        encode=encode,
        size=SIZE,
        scale=loss == "GRPO",
        max_new_tokens=TOKENS,
    )
    config = TrainConfig(STEPS, rate, weight_decay=0.0)
    per = "answer" if loss == "GRPO" else TOKENS
    trainer = Trainer(model, config, partial(policy_loss, per=per))
    for record in train(trainer, batches, progress=False):
        if record["step"] % 10 == 0:
            note(record["step"])
    return rows


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "reasoning_runs.csv"
    rows: list[dict] = []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    done = {(float(row["rate"]), row["loss"], int(row["seed"])) for row in rows}
    for chosen in RUNS:
        if chosen not in done:
            rows += run(*chosen)
            table = StringIO()
            writer = csv.DictWriter(table, fieldnames=rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_whole(path, table.getvalue())


if __name__ == "__main__":
    main()
