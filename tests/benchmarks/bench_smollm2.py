"""Measure SmolLM2 in the course's classes, also against transformers.

    python tests/benchmarks/bench_smollm2.py    # pip install transformers to compare

Both sides hold the same float32 weights and decode greedily, in turns, in one run.
Before that, their logits are compared, and the tokens that they choose, up to the first
one where the best two are nearly equally likely: there, rounding may decide.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from shared.pretrained_weights import load_pretrained
from shared.pretraining import generate
from shared.support import COURSE

sys.path.append(str(COURSE / "ch05_pretraining"))
from to_transformers import save_for_transformers

N, ROUNDS = 40, 5
TOLERANCE = 1e-3  # of a logit
CLEAR = 0.02  # the best logit is at least that far above the second


def without_cache(model, prompt: torch.Tensor, n: int) -> torch.Tensor:
    """Continue the prompt (1, T) greedily by n tokens, all computed again each time."""
    token_ids = prompt
    for _ in range(n):
        logits = model.out_head(model.hidden_states(token_ids)[:, -1])
        token_ids = torch.cat([token_ids, logits.argmax(-1, keepdim=True)], dim=1)
    return token_ids


def in_transformers(model, tokenizer):
    """Return the same model in transformers, or None if that is not installed."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m"
        save_for_transformers(model, tokenizer, path)
        theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None  # go on after the end of a turn
    return theirs


def check_same(model, theirs, prompt: torch.Tensor, their_ids: torch.Tensor) -> None:
    """Assert that both models have the same logits, and the same clear choices."""
    our_ids = generate(model, prompt, N)
    logits = model(our_ids)
    first = prompt.shape[1] - 1
    difference = logits[:, first] - theirs(prompt).logits[:, -1]
    worst = difference.abs().max().item()
    print(f"after the prompt, logits differ by at most {worst:.1e}")
    assert worst < TOLERANCE
    best, second = logits[0, first:-1].topk(2).values.unbind(-1)  # (N,)
    unclear = (best - second < CLEAR).nonzero()[:, 0].tolist()
    n_clear = unclear[0] if unclear else N
    print(f"the first {n_clear} of {N} greedy tokens are clear choices")
    end = first + 1 + n_clear
    assert torch.equal(our_ids[:, :end], their_ids[:, :end])


def in_turns(ways: dict[str, Callable]) -> dict[str, list[float]]:
    """Return the seconds of every round of each way, run in turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return times


@torch.no_grad()
def main() -> None:
    start = time.perf_counter()
    model, tokenizer = load_pretrained("smollm2-135m")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB on Linux
    print(f"model and tokenizer loaded in {seconds:.1f} s, peak {peak:.2f} GB")
    text = "It was a cold day in the harbour. " * 6
    prompt = torch.tensor([tokenizer.encode_ordinary(text)])
    ways = {
        "ours, cache": lambda: generate(model, prompt, N),
        "ours, no cache": lambda: without_cache(model, prompt, N),
    }
    theirs = in_transformers(model, tokenizer)
    if theirs is None:
        print("transformers is not installed")
    else:
        options = {"max_new_tokens": N, "do_sample": False, "pad_token_id": 0}
        options["attention_mask"] = torch.ones_like(prompt)
        ways["transformers, cache"] = lambda: theirs.generate(prompt, **options)
        check_same(model, theirs, prompt, ways["transformers, cache"]())
    times = in_turns(ways)
    for name, each in times.items():
        print(f"{name:20} {N / median(each):5.1f} tokens per second")
    if theirs is not None:
        pairs = zip(times["transformers, cache"], times["ours, cache"], strict=True)
        ratio = median(their_time / our_time for their_time, our_time in pairs)
        print(f"ours with the cache is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
