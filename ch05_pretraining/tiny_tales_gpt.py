"""Train the Tiny Tales GPT of the next notebook and chapter 6 into tiny_tales_gpt/.

    python ch05_pretraining/tiny_tales_gpt.py

The same data and model as in section 5.6 of the notebook, but 4,000 steps: some three
minutes on 2 CPU cores.
"""

from pathlib import Path

import torch

from shared.gpt_model import GPTConfig, GPTModel
from shared.pretraining import (
    TrainConfig,
    count_targets,
    save_model,
    story_batch,
    train_model,
)
from shared.text_data import END_OF_TEXT, BPETokenizer
from shared.tiny_tales import tales

HERE = Path(__file__).resolve().parent
CONTEXT, STEPS = 144, 4000


class TaleData:
    """Tiny Tales as chapter 5 uses them: tokenizer, training and held-out batches."""

    def __init__(self):
        texts = "\n".join(tale.text for tale in tales(1, 3000))
        self.tokenizer = BPETokenizer.train(texts, 2048, [END_OF_TEXT])
        held_out = list(tales(999, 256))
        self.val_batches = [self.batch(held_out[n : n + 64]) for n in range(0, 256, 64)]
        n_targets = sum(count_targets(targets) for _, targets in self.val_batches)
        # Nats per token
        self.floor = -sum(tale.log_prob for tale in held_out) / n_targets

    def batch(self, some) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets (B, T) of some tales."""
        return story_batch([tale.text for tale in some], self.tokenizer, CONTEXT)

    def __call__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return training batch i: eight tales from a seed of its own."""
        return self.batch(tales(1000 + i, 8))


def main() -> None:
    data = TaleData()
    torch.manual_seed(123)
    model = GPTModel(
        GPTConfig(data.tokenizer.n_vocab, CONTEXT, emb_dim=128, n_heads=4, n_layers=2)
    )
    settings = TrainConfig(STEPS, 1e-2, muon=True, warmup_steps=20, final_share=0.02)
    history = train_model(
        model, data, settings, val_batches=data.val_batches, eval_every=500
    )
    loss = history[-1]["val_loss"]
    print(f"validation loss {loss:.4f}, {loss / data.floor - 1:.1%} above the floor")
    save_model(model, HERE / "tiny_tales_gpt", data.tokenizer)


if __name__ == "__main__":
    main()
