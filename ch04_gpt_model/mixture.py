"""Train models with and without a mixture of experts on Tiny Tales, into mixture.csv.

    python ch04_gpt_model/mixture.py

Four kinds of model, three seeds each. `small` and the two mixtures use equally many
parameters for a token; `large` has, in all, as many as a mixture. Every run sees the
same tales in the same number of steps, and is optimized by AdamW; two kinds are trained
once more, with one seed, by chapter 5's other optimizer, Muon. Takes some eight minutes
on one CPU core. Runs that mixture.csv has already are left out, so that one may stop
and go on. The first balanced mixture also leaves mixture_tokens.csv: which expert of
its last block each of the commonest tokens prefers. ch04_modern_parts.ipynb shows both.
"""

import csv
import sys
from collections import Counter
from io import StringIO
from pathlib import Path

import torch
from torch import nn

from shared.gpt_model import count_parameters, initialise
from shared.llama_model import LlamaConfig, LlamaModel, SwiGLU
from shared.pretraining import (
    IGNORE,
    TrainConfig,
    Trainer,
    evaluate,
    next_token_loss,
    train,
)
from shared.support import write_whole
from shared.text_data import END_OF_TEXT

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "ch05_pretraining"))
from tiny_tales_gpt import CONTEXT, TaleData  # noqa: E402

PATH, TOKENS = HERE / "mixture.csv", HERE / "mixture_tokens.csv"
COLUMNS = "optimizer model seed total active tokens val_loss floor busiest".split()
EMB_DIM, HIDDEN, EXPERTS, TOP_K = 64, 64, 8, 2
STEPS, SEEDS = 600, (1, 2, 3)
KINDS = {"small": 0.0, "mixture": 0.0, "balanced mixture": 0.01, "large": 0.0}
RATES = {"AdamW": 5e-3, "Muon": 1e-2}
RUNS = [("AdamW", kind, seed) for seed in SEEDS for kind in KINDS]
RUNS += [("Muon", kind, SEEDS[0]) for kind in ("small", "balanced mixture")]


class MixtureOfExperts(nn.Module):
    """Feed-forward part of which each token uses top_k experts: (..., D) -> same."""

    def __init__(self, emb_dim: int, hidden_dim: int, n_experts: int, top_k: int):
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(emb_dim, n_experts, bias=False)
        experts = [SwiGLU(emb_dim, hidden_dim) for _ in range(n_experts)]
        self.experts = nn.ModuleList(experts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, -2)  # (N, D)
        self.scores = self.router(tokens)  # (N, E)
        best, self.chosen = self.scores.topk(self.top_k)  # (N, k) each
        weights = best.softmax(dim=-1)  # (N, k), over the chosen only
        out = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            token, place = (self.chosen == e).nonzero(as_tuple=True)
            share = weights[token, place, None]  # (n, 1) for the n tokens that chose e
            out = out.index_add(0, token, share * expert(tokens[token]))
        return out.view_as(x)


def imbalance(scores: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return a penalty for uneven use, 1 if all is even (Fedus et al., 2021).

    `scores` (N, E) are the router's, `chosen` (N, k) the experts of each token.
    """
    n_experts = scores.shape[1]
    used = chosen.flatten().bincount(minlength=n_experts) / chosen.numel()  # (E,)
    wished = scores.softmax(dim=-1).mean(dim=0)  # (E,), and this has a gradient
    return n_experts * (used * wished).sum()


def build(kind: str, vocab_size: int) -> LlamaModel:
    """Return a fresh model of one of the KINDS."""
    hidden = HIDDEN * EXPERTS // TOP_K if kind == "large" else HIDDEN
    model = LlamaModel(
        LlamaConfig(vocab_size, CONTEXT, EMB_DIM, 4, 2, n_kv_heads=2, hidden_dim=hidden)
    )
    if "mixture" in kind:
        for block in model.blocks:
            size = (EMB_DIM, HIDDEN // TOP_K, EXPERTS, TOP_K)
            block.feed_forward = MixtureOfExperts(*size)
        initialise(model)
    return model


def mixtures(model: nn.Module) -> list[MixtureOfExperts]:
    """Return the mixtures in a model."""
    return [part for part in model.modules() if isinstance(part, MixtureOfExperts)]


def active_parameters(model: nn.Module) -> int:
    """Return how many parameters one token uses."""
    idle = sum(
        count_parameters(part.experts) * (EXPERTS - TOP_K) // EXPERTS
        for part in mixtures(model)
    )
    return count_parameters(model) - idle


@torch.no_grad()
def routes(model: nn.Module, data: TaleData) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the held-out tokens (N,), and who serves them (blocks, N, TOP_K)."""
    tokens, chosen = [], []
    for token_ids, targets in data.held_out:
        model(token_ids)
        real = (targets != IGNORE).flatten()  # and no padding
        tokens.append(token_ids.flatten()[real])
        chosen.append(torch.stack([part.chosen[real] for part in mixtures(model)]))
    return torch.cat(tokens), torch.cat(chosen, dim=1)


def busiest_share(chosen: torch.Tensor) -> float:
    """Return the share of choices that fell on the busiest expert, mean over blocks."""
    shares = [block.flatten().bincount().max() / block.numel() for block in chosen]
    return round(sum(shares).item() / len(shares), 3)


def preferences(model: nn.Module, data: TaleData) -> list[dict]:
    """Return, for the commonest tokens, how often each expert is the first choice."""
    tokens, chosen = routes(model, data)
    first = chosen[-1, :, 0]
    rows = []
    for token, count in Counter(tokens.tolist()).most_common(61):
        shares = first[tokens == token].bincount(minlength=EXPERTS) / count
        names = {f"expert {e}": round(s, 3) for e, s in enumerate(shares.tolist())}
        rows.append({"token": data.tokenizer.decode([token]), "count": count} | names)
    return [row for row in rows if row["token"] != END_OF_TEXT][:60]


def write(path: Path, rows: list[dict]) -> None:
    """Write a table, as a whole or not at all: the runs before may have taken long."""
    table = StringIO()
    writer = csv.DictWriter(table, fieldnames=rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, table.getvalue())


def run(optimizer: str, kind: str, seed: int, data: TaleData) -> dict:
    """Train one model; return its row."""

    def loss(model, token_ids, targets):
        total, count = next_token_loss(model, token_ids, targets)
        real = (targets != IGNORE).flatten()  # (N,)
        for part in mixtures(model) if KINDS[kind] else []:
            uneven = imbalance(part.scores[real], part.chosen[real])
            total = total + KINDS[kind] * count * uneven
        return total, count

    torch.manual_seed(seed)
    model = build(kind, data.tokenizer.n_vocab)
    config = TrainConfig(
        STEPS,
        RATES[optimizer],
        muon=optimizer == "Muon",
        warmup_steps=50,
        final_share=0.02,
    )
    trainer = Trainer(model, config, loss)
    for _ in train(trainer, data.training(), progress=False):
        pass
    model.eval()
    if (optimizer, kind, seed) == ("AdamW", "balanced mixture", SEEDS[0]):
        write(TOKENS, preferences(model, data))
    busiest = busiest_share(routes(model, data)[1]) if mixtures(model) else ""
    numbers = count_parameters(model), active_parameters(model), trainer.tokens
    losses = round(evaluate(model, data.held_out), 4), round(data.floor, 4)
    row = (optimizer, kind, seed, *numbers, *losses, busiest)
    return dict(zip(COLUMNS, row, strict=True))


def main() -> None:
    rows: list[dict] = []
    if PATH.exists():
        with PATH.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    done = {(row["optimizer"], row["model"], int(row["seed"])) for row in rows}
    data = TaleData()
    for optimizer, kind, seed in RUNS:
        if (optimizer, kind, seed) not in done:
            rows.append(run(optimizer, kind, seed, data))
            write(PATH, rows)
            print(*rows[-1].values(), flush=True)


if __name__ == "__main__":
    main()
