"""Measure SmolLM2 in the course's classes, also against transformers.

    python tests/benchmarks/bench_smollm2.py    # pip install transformers to compare

Both sides hold the same float32 weights and decode greedily, in turns, in one run.
"""

import resource
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from shared.pretrained_weights import (
    load_pretrained,
    save_for_transformers,
    tokenizer_for,
)
from shared.pretraining import generate

N, ROUNDS = 40, 5


def main() -> None:
    start = time.perf_counter()
    model, tokenizer = load_pretrained("smollm2-135m"), tokenizer_for("smollm2-135m")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB on Linux
    print(f"model and tokenizer loaded in {seconds:.1f} s, peak {peak:.2f} GB")
    prompt = torch.tensor(
        [tokenizer.encode_ordinary("It was a cold day in the harbour. " * 6)]
    )
    ways = {
        "ours, cache": lambda: generate(model, prompt, N),
        "ours, no cache": lambda: generate(model, prompt, N, use_cache=False),
    }
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        print("transformers is not installed")
    else:
        with tempfile.TemporaryDirectory() as folder:
            save_for_transformers(model, tokenizer, Path(folder) / "m")
            theirs = AutoModelForCausalLM.from_pretrained(
                Path(folder) / "m", dtype=torch.float32
            )
        options = {
            "max_new_tokens": N,
            "min_new_tokens": N,
            "do_sample": False,
            "pad_token_id": 0,
        }
        options["attention_mask"] = torch.ones_like(prompt)
        ways["transformers, cache"] = lambda: theirs.generate(prompt, **options)
        assert torch.equal(ways["transformers, cache"](), ways["ours, cache"]())
    times = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(ROUNDS):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - start)
    for name, each in times.items():
        print(f"{name:20} {N / median(each):5.1f} tokens per second")
    if "transformers, cache" in times:
        pairs = zip(times["transformers, cache"], times["ours, cache"], strict=True)
        ratio = median(theirs / ours for theirs, ours in pairs)
        print(f"ours with the cache is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
