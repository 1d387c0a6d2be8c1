"""Train the model that ch07_reasoning.ipynb starts from, into sums_gpt/.

    python ch07_instruction/reasoning_start.py

A GPT of 406,000 weights sees sums of two to four numbers with their right answers.
Three in ten of the answers write the running sums first; the others are the number.
Takes some two minutes on one CPU core.
"""

import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch

from shared.gpt_model import GPTConfig, GPTModel
from shared.instruction import collate
from shared.pretrained_weights import end_token
from shared.pretraining import TrainConfig, Trainer, save_model, train
from shared.reasoning import draw_sums, worked_sum
from shared.tokenizer import BPETokenizer

FOLDER = Path(__file__).resolve().parent / "sums_gpt"
STEPS, BATCH, WRITTEN = 900, 64, 0.3
END = "<|im_end|>"  # ends an answer, as in a chat
SIGNS = [sign.encode() for sign in [*"0123456789+=,>", END]]  # a token each
TOKENIZER = BPETokenizer(dict(enumerate(SIGNS)), [], {END: len(SIGNS) - 1})


def examples(seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches without end: straight answers, then written ones, in turn."""
    dice = random.Random(seed)
    end = end_token(TOKENIZER)
    for n in count(1000 * (seed + 1)):
        some = draw_sums(BATCH // 2, "train", n)
        for form in ("{}+{}+{}=", "{}+{}="):
            some += draw_sums(BATCH // 4, "train", n, form)
        dice.shuffle(some)
        n_written = round(WRITTEN * BATCH)
        for write, part in ((False, some[n_written:]), (True, some[:n_written])):
            texts = [worked_sum(question, write) for question in part]
            prompts = [TOKENIZER.encode_ordinary(question) for question in part]
            answers = [[*TOKENIZER.encode_ordinary(text), end] for text in texts]
            yield collate(list(zip(prompts, answers, strict=True)))


def main() -> None:
    torch.manual_seed(0)
    model = GPTModel(
        GPTConfig(TOKENIZER.n_vocab, 64, emb_dim=128, n_heads=4, n_layers=2)
    )
    config = TrainConfig(
        STEPS, 5e-3, muon=True, warmup_steps=20, final_share=0.02, accumulate=2
    )
    for record in train(Trainer(model, config), examples(0)):
        if record["step"] % 100 == 0:
            print(f"step {record['step']}: loss {record['loss']:.3f}", flush=True)
    save_model(model, FOLDER, TOKENIZER)


if __name__ == "__main__":
    main()
