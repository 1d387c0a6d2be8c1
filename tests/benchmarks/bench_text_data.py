"""Measure chapter 2's tokenizer and dataset (first `pip install tokenizers`).

    python tests/benchmarks/bench_text_data.py

Training times are medians of alternated runs, ours and Hugging Face `tokenizers` in
turn, as ratios; the text is Python's own documentation, which every Python brings
along. Nothing is asserted: the figures are for people.
"""

import argparse
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import torch

from shared.text_data import GPTDataset, load_text
from shared.tokenizer import BPETokenizer


def seconds(work: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def train_with_tokenizers(text: str, vocab_size: int) -> None:
    """Train byte-level BPE with Hugging Face `tokenizers`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([text], trainer)


def compare_training(name: str, text: str, vocab_size: int, runs: int) -> None:
    """Print the median training times of both, and their ratio."""
    ours, theirs = [], []
    for _ in range(runs):
        ours.append(seconds(lambda: BPETokenizer.train(text, vocab_size)))
        theirs.append(seconds(lambda: train_with_tokenizers(text, vocab_size)))
    a, b = statistics.median(ours), statistics.median(theirs)
    print(
        f"train {vocab_size:5} on {name}: ours {a:.3f} s, tokenizers {b:.3f} s, "
        f"ratio {a / b:.2f}"
    )


def measure_encoding(text: str, runs: int) -> None:
    """Print the speed of our encoder and of tiktoken with the same vocabulary."""
    fast = BPETokenizer.from_gpt2_files().to_tiktoken()
    ours, theirs = [], []
    for _ in range(runs):
        tokenizer = BPETokenizer.from_gpt2_files()  # a fresh one has an empty cache
        ours.append(seconds(lambda: tokenizer.encode_ordinary(text)))  # noqa: B023
        theirs.append(seconds(lambda: fast.encode_ordinary(text)))
    a, b = (len(text) / statistics.median(times) / 1e6 for times in (ours, theirs))
    print(f"encode: ours {a:.2f} million characters a second, tiktoken {b:.2f}")


def measure_stream(text: str) -> None:
    """Print the extra memory of encoding a file of 20 MB line by line."""
    tokenizer = BPETokenizer.from_gpt2_files()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.txt"
        path.write_text(text * (20_000_000 // len(text) + 1), encoding="utf-8")
        with path.open(encoding="utf-8") as lines:
            tracemalloc.start()
            start = time.perf_counter()
            n_ids = sum(1 for _ in tokenizer.encode_iterable(lines))
            took = time.perf_counter() - start
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        megabytes = path.stat().st_size / 1e6
    print(
        f"stream {megabytes:.1f} MB: {n_ids:,} ids in {took:.0f} s (traced), ", end=""
    )
    print(f"{peak / 2**20:.1f} MiB extra")


def measure_dataset() -> None:
    """Print the time and memory of building a dataset of ten million windows."""
    ids = torch.zeros(10_000_000, dtype=torch.int64)
    tracemalloc.start()
    took = seconds(lambda: GPTDataset(ids, context_length=256, stride=1)[5])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(
        f"dataset of 10M tokens, stride 1: {took * 1e3:.2f} ms, "
        f"{peak / 2**10:.1f} KiB extra"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--runs", type=int, default=9, help="alternated runs of each training"
    )
    runs = parser.parse_args().runs
    docs = "\n".join(topics[name] for name in sorted(topics))
    compare_training("300 KB of Python's documentation", docs[:300_000], 1024, runs)
    compare_training("300 KB of Python's documentation", docs[:300_000], 4096, runs)
    compare_training("133 KB of Python's documentation", docs[:133_000], 500, runs)
    compare_training("the story (20 KB)", load_text(), 1024, runs)
    measure_encoding(docs, 3)
    measure_dataset()
    measure_stream(docs)


if __name__ == "__main__":
    main()
