"""Measure how soon chapter 5's loop reaches the loss of nanoGPT's published CPU recipe.

    python tests/benchmarks/bench_pretraining.py [--text FILE]

Both train at character level on the same text, by default the docstrings of Python's
library. The yardstick, written here from the recipe's numbers: 4 layers, 4 heads, 128
wide, context 64, batch 12, 2,000 steps, AdamW with a peak of 1e-3, 100 steps of
warm-up, cosine to 1e-4, betas 0.9 and 0.99, weight decay 0.1, clipping at 1, no
dropout, no biases, tied head. Ours: a GPTModel of the same size, trained by a Trainer
with Muon. Nothing is asserted.
"""

import argparse
import ast
import math
import sysconfig
import time
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_attention import FusedQKV
from torch import nn

from shared.gpt_model import GPTConfig, GPTModel, count_parameters
from shared.pretraining import TrainConfig, Trainer, evaluate, train

CONTEXT = 64
STEPS = 2000


class Block(nn.Module):
    """A pre-norm block with fused queries, keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.attention = FusedQKV(width, heads)
        self.expand = nn.Linear(width, 4 * width, bias=False)
        self.project = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.project(F.gelu(self.expand(self.norm2(x))))


class Yardstick(nn.Module):
    """A GPT as nanoGPT builds it."""

    def __init__(
        self, vocab_size: int, width: int = 128, heads: int = 4, layers: int = 4
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_stream = name.endswith(("out.weight", "project.weight"))
                nn.init.normal_(
                    parameter, std=0.02 / (math.sqrt(2 * layers) if into_stream else 1)
                )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def windows(
    ids: torch.Tensor, rows: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random inputs and targets (rows, CONTEXT)."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(ids) - CONTEXT, (rows, 1), generator=generator)
    batch = ids[starts + torch.arange(CONTEXT + 1)]
    return batch[:, :-1], batch[:, 1:]


def train_yardstick(model: nn.Module, ids: torch.Tensor) -> float:
    """Train as the recipe says; return the seconds."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    start = time.perf_counter()
    for step in range(STEPS):
        warm = min(1.0, (step + 1) / 100)
        cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - 100) / (STEPS - 100)))
        for group in optimizer.param_groups:
            group["lr"] = warm * 1e-3 if step < 100 else 1e-4 + cosine * 9e-4
        inputs, targets = windows(ids, 12, step)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return time.perf_counter() - start


def docstrings() -> str:
    """Return the English text in the docstrings of Python's library, ASCII alone."""
    found = []
    library = Path(sysconfig.get_path("stdlib"))
    for path in [*sorted(library.glob("*.py")), *sorted(library.glob("asyncio/*.py"))]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found.append(ast.get_docstring(node) or "")
    text = "\n".join(found)
    return "".join(letter for letter in text if letter.isascii())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="a plain text file of about 1 MB")
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 400, 500, 700])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8") if args.text else docstrings()
    text = text[:1_000_000]
    letters = sorted(set(text))
    ids = torch.tensor([letters.index(letter) for letter in text])
    cut = int(0.9 * len(ids))
    train_ids, val_ids = ids[:cut], ids[cut:]
    val_batches = [windows(val_ids, 64, 10**6 + n) for n in range(30)]
    print(f"{len(text):,} characters, {len(letters)} different ones")

    torch.manual_seed(1337)
    yardstick = Yardstick(len(letters))
    theirs = train_yardstick(yardstick, train_ids)
    goal = evaluate(yardstick, val_batches)
    size = count_parameters(yardstick)
    print(f"yardstick: {size:,} parameters, {theirs:.0f} s, validation loss {goal:.3f}")

    for steps in args.steps:
        torch.manual_seed(1337)
        model = GPTModel(
            GPTConfig(len(letters), CONTEXT, emb_dim=128, n_heads=4, n_layers=4)
        )
        settings = TrainConfig(
            steps, args.learning_rate, muon=True, warmup_steps=20, final_share=0.02
        )
        batches = (windows(train_ids, args.rows, i) for i in count())
        for record in train(Trainer(model, settings), batches, progress=False):
            seconds = record["seconds"]
        loss = evaluate(model, val_batches)
        print(
            f"ours, {steps} steps: {count_parameters(model):,} parameters, "
            f"{seconds:.0f} s, {seconds / theirs:.2f} x the time, "
            f"validation loss {loss:.3f} ({loss - goal:+.3f})"
        )


if __name__ == "__main__":
    main()
