"""Measure chapter 3's MultiHeadAttention against the block that nanoGPT trains with.

    python tests/benchmarks/bench_attention.py

The yardstick, written here: one fused linear layer for queries, keys and values,
`scaled_dot_product_attention`, an output projection. Times are medians of alternated
runs of a forward and a backward pass; nothing is asserted.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from shared.attention import MultiHeadAttention


class FusedQKV(nn.Module):
    """Causal attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.width, self.heads = width, heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, n_tokens, width = x.shape
        q, k, v = (
            part.view(batch, n_tokens, self.heads, -1).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).contiguous().view(batch, n_tokens, width))


def compare_speed(runs: int) -> None:
    """Print the median times at (8, 256, 384) with 6 heads, and their ratio."""
    x = torch.randn(8, 256, 384, requires_grad=True)
    layers = {
        "ours": MultiHeadAttention(384, 384, n_heads=6),
        "fused QKV": FusedQKV(384, 6),
    }
    times = {name: [] for name in layers}
    for run in range(runs + 3):  # three to warm up
        for name, layer in layers.items():
            start = time.perf_counter()
            layer(x).sum().backward()
            if run >= 3:
                times[name].append(time.perf_counter() - start)
    ours, theirs = (statistics.median(times[name]) for name in layers)
    print(f"forward and backward at (8, 256, 384), 6 heads, median of {runs}: ", end="")
    print(f"ours {ours * 1e3:.1f} ms, fused QKV {theirs * 1e3:.1f} ms, ", end="")
    print(f"ratio {ours / theirs:.3f}")


def peak_of(function) -> int:
    """Return the peak memory that function() allocates, from the profiler, in bytes."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def peak_bytes(n_tokens: int) -> int:
    """Return the peak of allocated memory over a forward and a backward pass."""
    layer = MultiHeadAttention(384, 384, n_heads=6)
    x = torch.randn(1, n_tokens, 384, requires_grad=True)
    layer(x).sum().backward()  # the gradients exist before we count
    return peak_of(lambda: layer(x).sum().backward())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30, help="alternated runs")
    compare_speed(parser.parse_args().runs)
    peaks = {n_tokens: peak_bytes(n_tokens) for n_tokens in (512, 1024, 2048)}
    for n_tokens, peak in peaks.items():
        print(f"T = {n_tokens:4}: peak {peak / 2**20:.2f} MiB in a training step")
    growth = [peaks[1024] / peaks[512], peaks[2048] / peaks[1024]]
    print(f"growth {growth[0]:.2f}, {growth[1]:.2f}; linear is 2")


if __name__ == "__main__":
    main()
