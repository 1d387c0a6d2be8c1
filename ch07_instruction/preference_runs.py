"""Train on the preference pairs with several rates and seeds: preference_runs.csv.

    python ch07_instruction/preference_runs.py

The notebook ch07_preference.ipynb trains once and shows the file. Here the same is done
with three rates, the middle one with three seeds. The columns: the share of
test pairs with a positive margin; the mean change of the log-probability of chosen and
of rejected answers of the test pairs; of the hundred closed test questions, how many
are right, how many were learned and lost, and the words in an answer; and the answer to
one question. Each row is written as soon as it is known; a row that is there already is
not made again. All is computed in bfloat16. A run takes a minute or two on 2 CPU cores.
"""

from functools import partial
from pathlib import Path

import pandas as pd
import torch

from shared.instruction import (
    answer_all,
    answer_log_probs,
    is_right,
    length_batches,
    load_conversations,
)
from shared.lora import load_adapter
from shared.preference import (
    collate_pairs,
    dpo_loss,
    encode_pairs,
    load_preferences,
    preference_margins,
)
from shared.pretrained_weights import load_pretrained
from shared.pretraining import TrainConfig, Trainer, train
from shared.support import write_whole
from shared.support.course import get_device, set_seed
from shared.support.modules import evaluating

HERE = Path(__file__).resolve().parent
PATH = HERE / "preference_runs.csv"
BETA = 0.1
QUESTION = "What is 17 + 25?"
RUNS = [(1e-3, 123), (4e-3, 123), (4e-4, 123), (1e-3, 1), (1e-3, 2), (4e-3, 1)]
COLUMNS = [
    "rate", "seed", "accuracy", "chosen", "rejected", "right", "learned", "lost",
    "words", "says",
]  # fmt: skip


class Study:
    """The tuned model, the pairs, and what the model says before any training."""

    def __init__(self) -> None:
        self.model, self.tokenizer = load_pretrained()
        load_adapter(self.model.to(get_device()), HERE / "tuned")
        pairs, context = load_preferences(), self.model.config.context_length
        self.train, self.test = (
            encode_pairs(
                [p for p in pairs if p["split"] == split], self.tokenizer, context
            )
            for split in ("train", "test")
        )
        self.closed = [
            e
            for e in load_conversations()
            if e["split"] == "test" and "accepted" in e and len(e["turns"]) == 2
        ]
        self.reference = self.measured(self.test)
        said = self.measured(self.train).T  # (N, 2)
        self.says_of = dict(zip(map(id, self.train), said, strict=True))
        self.before, self.words, self.says = self.answers()

    def autocast(self) -> torch.autocast:
        """Return a context in which the model computes in bfloat16."""
        return torch.autocast(self.model.device.type, torch.bfloat16)

    @torch.no_grad()
    def measured(self, part: list[tuple]) -> torch.Tensor:
        """Return the log-probabilities (2, N) of chosen and rejected answers."""
        sums = []
        with evaluating(self.model), self.autocast():
            for start in range(0, len(part), 8):
                batch = collate_pairs(part[start : start + 8])
                sums.append(answer_log_probs(self.model, *batch)[0].view(2, -1))
        return torch.cat(sums, dim=1)

    def answers(self) -> tuple[torch.Tensor, float, str]:
        """Return which closed questions are right (N,), mean words, and one answer."""
        talks = [[QUESTION], *(e["turns"][:1] for e in self.closed)]
        with self.autocast():
            says, *said = answer_all(
                self.model, self.tokenizer, talks, 28, batch_size=51
            )
        right = [is_right(a, e) for a, e in zip(said, self.closed, strict=True)]
        words = sum(len(answer.split()) for answer in said) / len(said)
        return torch.tensor(right), words, " ".join(says.split())

    def run(self, rate: float, seed: int) -> list:
        """Train the tuned adapter on the pairs; return a row of the table."""
        model = load_adapter(self.model, HERE / "tuned")
        set_seed(seed)
        groups = length_batches(self.train, 4, torch.Generator().manual_seed(seed))
        batches = [
            (*collate_pairs(g), torch.stack([self.says_of[id(e)] for e in g], dim=1))
            for g in groups
        ]
        config = TrainConfig(
            len(batches), rate, warmup_steps=5, weight_decay=0.0, bfloat16=True
        )
        trainer = Trainer(model, config, loss=partial(dpo_loss, beta=BETA))
        for _ in train(trainer, batches):
            pass  # nothing to do between two steps
        policy = self.measured(self.test)
        wins = preference_margins(policy, self.reference, BETA) > 0
        chosen, rejected = (policy - self.reference).mean(dim=1).tolist()
        now, words, says = self.answers()
        return [
            f"{rate:g}", seed, f"{wins.float().mean():.2f}",
            f"{chosen:.1f}", f"{rejected:.1f}", int(now.sum()),
            int((now & ~self.before).sum()), int((self.before & ~now).sum()),
            f"{words:.1f}", says,
        ]  # fmt: skip


def main() -> None:
    """Fill the table, run by run."""
    rows = []
    if PATH.exists():
        rows = pd.read_csv(PATH, dtype=str, keep_default_na=False).values.tolist()
    made = {(row[0], row[1]) for row in rows}
    study = Study()
    if not rows:
        right, words = int(study.before.sum()), f"{study.words:.1f}"
        rows.append(["", "", "", "", "", right, "", "", words, study.says])
    for rate, seed in RUNS:
        if (f"{rate:g}", str(seed)) in made:
            continue
        rows.append(study.run(rate, seed))
        print(*rows[-1], flush=True)
        write_whole(PATH, pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))


if __name__ == "__main__":
    main()
