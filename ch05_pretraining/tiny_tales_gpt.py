"""Train the Tiny Tales GPT of the next notebook and chapter 6 into tiny_tales_gpt/.

    python ch05_pretraining/tiny_tales_gpt.py

The same data and model as in section 5.6 of the notebook, but 4,000 steps: some three
minutes on 2 CPU cores.
"""

from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import torch

from shared.gpt_model import GPTConfig, GPTModel
from shared.pretraining import (
    IGNORE,
    TrainConfig,
    Trainer,
    evaluate,
    save_model,
    story_batch,
    train,
)
from shared.support.tiny_tales import Tale, tales
from shared.text_data import END_OF_TEXT
from shared.tokenizer import BPETokenizer

HERE = Path(__file__).resolve().parent
CONTEXT = 160
STEPS = 4000


class TaleData:
    """Tiny Tales as chapter 5 uses them: tokenizer, training and held-out batches.

    `floor` is what the true probabilities cost on the held-out tales, per token.
    """

    def __init__(self) -> None:
        texts = "\n".join(tale.text for tale in tales(1, 3000))
        self.tokenizer = BPETokenizer.train(texts, 2048, [END_OF_TEXT])
        held_out = list(tales(999, 256))
        self.held_out = [self.batch(held_out[n : n + 64]) for n in range(0, 256, 64)]
        n_targets = sum(int((targets != IGNORE).sum()) for _, targets in self.held_out)
        self.floor = -sum(tale.log_prob for tale in held_out) / n_targets

    def batch(self, some: Iterable[Tale]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and targets (B, T) of some tales."""
        return story_batch([tale.text for tale in some], self.tokenizer, CONTEXT)

    def training(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield batches of eight tales without end, each from a seed of its own."""
        for seed in count(1000):
            yield self.batch(tales(seed, 8))


def main() -> None:
    data = TaleData()
    torch.manual_seed(123)
    model = GPTModel(
        GPTConfig(data.tokenizer.n_vocab, CONTEXT, emb_dim=128, n_heads=4, n_layers=2)
    )
    config = TrainConfig(STEPS, 1e-2, muon=True, warmup_steps=20, final_share=0.02)
    for record in train(Trainer(model, config), data.training()):
        if record["step"] % 500 == 0:
            loss = evaluate(model, data.held_out)
            above = loss / data.floor - 1
            print(f"step {record['step']}: held-out loss {loss:.4f}, ", end="")
            print(f"{above:.1%} above the floor")
    save_model(model, HERE / "tiny_tales_gpt", data.tokenizer)


if __name__ == "__main__":
    main()
