"""Measure chapter 4's GPTModel against Hugging Face's GPT-2 of the same shape.

    pip install transformers && python tests/benchmarks/bench_gpt.py

6 layers, 384 wide, 6 heads, 256 tokens, vocabulary 4,096, float32, fused AdamW.
Alternated runs, medians, ratios; nothing is asserted. `transformers` is needed for this
comparison only.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from bench_attention import peak_of
from transformers import GPT2Config, GPT2LMHeadModel

from shared.gpt_model import GPTConfig, GPTModel
from shared.pretraining import generate

BATCH, TOKENS, VOCAB = 8, 256, 4096


def models() -> dict[str, torch.nn.Module]:
    """Return both models, fresh, of the same shape."""
    ours = GPTConfig(VOCAB, TOKENS, emb_dim=384, n_heads=6, n_layers=6, qkv_bias=True)
    theirs = GPT2Config(
        vocab_size=VOCAB, n_positions=TOKENS, n_embd=384, n_head=6, n_layer=6,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return {"ours": GPTModel(ours), "Hugging Face": GPT2LMHeadModel(theirs)}


def training_step(name: str, model: torch.nn.Module) -> Callable[[], None]:
    """Return a function that does one step of training on random tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(VOCAB, (BATCH, TOKENS + 1))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = model(inputs) if name == "ours" else model(inputs).logits
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()

    return step


def alternate(
    functions: dict[str, Callable[[], object]], runs: int, warm_up: int
) -> dict:
    """Return the median seconds of each function, run in turns."""
    times = {name: [] for name in functions}
    for run in range(runs + warm_up):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if run >= warm_up:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="alternated runs")
    runs = parser.parse_args().runs
    torch.manual_seed(0)

    steps = {
        name: training_step(name, model.train()) for name, model in models().items()
    }
    seconds = alternate(steps, runs, warm_up=3)
    for name, median in seconds.items():
        print(f"training step, {name}: {median * 1e3:.0f} ms, ", end="")
        print(f"{BATCH * TOKENS / median:.0f} tokens/s")
    print(f"ours is {seconds['Hugging Face'] / seconds['ours']:.2f} times as fast")
    product = torch.randn(BATCH * TOKENS, 384), torch.randn(384, 1536)
    rate = (
        2
        * BATCH
        * TOKENS
        * 384
        * 1536
        / alternate({"": lambda: product[0] @ product[1]}, 50, 5)[""]
    )
    size = 6 * (6 * 12 * 384**2 + VOCAB * 384) + 6 * 12 * TOKENS * 384
    share = BATCH * TOKENS * size / seconds["ours"] / rate
    print(f"ours reaches {share:.0%} of the rate of torch's matrix product")
    for name, step in steps.items():
        print(f"peak of a training step, {name}: {peak_of(step) / 2**20:.0f} MiB")

    fresh = {name: model.eval() for name, model in models().items()}
    prompt = torch.randint(VOCAB, (1, 1))
    decoders = {
        "ours": lambda: generate(fresh["ours"], prompt, TOKENS - 1),
        "Hugging Face": lambda: fresh["Hugging Face"].generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
            min_new_tokens=TOKENS - 1, max_new_tokens=TOKENS - 1, pad_token_id=0,
            use_cache=True,
        ),
    }  # fmt: skip
    seconds = alternate(decoders, max(3, runs // 3), warm_up=1)
    for name, median in seconds.items():
        speed = (TOKENS - 1) / median
        print(f"greedy decoding with the cache, {name}: {speed:.0f} tokens/s")
    print(f"ours is {seconds['Hugging Face'] / seconds['ours']:.2f} times as fast")


if __name__ == "__main__":
    main()
