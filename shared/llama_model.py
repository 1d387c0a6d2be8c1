"""The model that GPT-2 became: four parts exchanged, each for a reason, and
SmolLM2-135M's 134,515,008 parameters counted exactly.

Generated from ch04_gpt_model/ch04_llama_model.ipynb by `python -m shared.export`;
edit the notebook, not this file.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from shared.attention import attend, check_input, split_heads
from shared.gpt_model import (
    Decoder,
    DecoderConfig,
    initialise,
    token_positions,
    use_fast_linear,
)

__all__ = [
    "RMSNorm", "Rotary", "halves_to_pairs", "pairs_to_halves", "SwiGLU",
    "GroupedQueryAttention", "LlamaConfig", "SMOLLM2_135M", "LlamaBlock",
    "LlamaModel",
]  # fmt: skip


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang, Sennrich, 2019): (..., D) -> (..., D)."""

    def __init__(self, emb_dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(emb_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Rotary:
    """Rotary positions (Su et al., 2021) of pairs of neighbours: (B, H, T, K) -> same.

    Pair i, the numbers 2 i and 2 i + 1, is turned by position * base ** (-2 i / K)
    radians.
    """

    def __init__(self, head_dim: int, context_length: int, base: float = 10_000.0):
        pair = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu")
        speeds = base ** (-pair / head_dim)  # (K / 2,) radians for each position
        positions = torch.arange(context_length, dtype=torch.float64, device="cpu")
        angles = torch.outer(positions, speeds)  # (context, K / 2)
        turns = torch.polar(torch.ones_like(angles), angles)  # cos + i sin
        # One table, and a copy on every device that asks
        self.turns = {"cpu": turns.to(torch.complex64)}

    def __call__(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Turn x (B, H, T, K) by its positions (T,) or (B, T) int64."""
        if (device := str(x.device)) not in self.turns:
            self.turns[device] = self.turns["cpu"].to(x.device)
        turns = self.turns[device][positions]  # (T, K / 2) or (B, T, K / 2)
        if positions.ndim == 2:
            turns = turns[:, None]  # (B, 1, T, K / 2): all heads alike
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        # Neighbours as one complex number: (B, H, T, K / 2)
        pairs = torch.view_as_complex(precise.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


def halves_to_pairs(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Reorder rows (H * K, ...) from pairs (i, i + K / 2) to pairs (2 i, 2 i + 1)."""
    heads = weight.unflatten(0, (n_heads, 2, -1))  # (H, 2, K / 2, ...)
    return heads.transpose(1, 2).reshape(weight.shape)


def pairs_to_halves(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Reorder rows (H * K, ...) from pairs (2 i, 2 i + 1) to pairs (i, i + K / 2)."""
    heads = weight.unflatten(0, (n_heads, -1, 2))  # (H, K / 2, 2, ...)
    return heads.transpose(1, 2).reshape(weight.shape)


class SwiGLU(nn.Module):
    """Gated feed-forward part (Shazeer, 2020), token by token: (..., D) -> (..., D)."""

    def __init__(self, emb_dim: int, hidden_dim: int):
        super().__init__()
        self.gate = nn.Linear(emb_dim, hidden_dim, bias=False)
        self.up = nn.Linear(emb_dim, hidden_dim, bias=False)
        self.project = nn.Linear(hidden_dim, emb_dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(F.silu(self.gate(x)) * self.up(x))


class GroupedQueryAttention(nn.Module):
    """Causal attention, rotary positions, shared keys and values: Ainslie et al., 2023.

    (B, T, D) -> (B, T, D), as MultiHeadAttention; query head h uses key head h // (H /
    n_kv_heads).
    """

    def __init__(self, config: "LlamaConfig", rotary: Rotary):
        super().__init__()
        self.config, self.rotary = config, rotary
        D, kv_dim = config.emb_dim, config.n_kv_heads * config.head_dim
        self.W_query = nn.Linear(D, D, bias=False)
        self.W_key = nn.Linear(D, kv_dim, bias=False)
        self.W_value = nn.Linear(D, kv_dim, bias=False)
        self.out_proj = nn.Linear(D, D, bias=False)

    def forward(self, x: torch.Tensor, cache=None, pad_left=None) -> torch.Tensor:
        n_past = 0 if cache is None else cache.length
        check_input(
            x, self.config.emb_dim, self.config.context_length, n_past, pad_left
        )
        # Each (B, T, heads * K)
        projected = self.W_query(x), self.W_key(x), self.W_value(x)
        queries, keys, values = (
            split_heads(p, self.config.head_dim) for p in projected
        )
        positions = token_positions(x.shape[1], n_past, pad_left, x.device)
        queries, keys = self.rotary(queries, positions), self.rotary(keys, positions)
        return self.out_proj(attend(queries, keys, values, cache, pad_left))


@dataclass(frozen=True)
class LlamaConfig(DecoderConfig):
    """What a LlamaModel looks like; the defaults are SmolLM2-135M.

    Raises ValueError, beside that of DecoderConfig, for n_kv_heads that do not divide
    n_heads, and for an odd head dimension.
    """

    vocab_size: int = 49_152
    context_length: int = 8192
    emb_dim: int = 576  # D
    n_heads: int = 9  # H
    n_kv_heads: int = 3  # heads of keys and values
    n_layers: int = 30
    hidden_dim: int = 1536  # F, the middle of the feed-forward part
    rope_base: float = 100_000.0
    norm_eps: float = 1e-5
    tie_weights: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"{self.n_kv_heads} kv heads do not divide {self.n_heads} heads"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"rotary positions need an even head dimension, got {self.head_dim}"
            )


SMOLLM2_135M = LlamaConfig()


class LlamaBlock(nn.Module):
    """Pre-norm block: RMSNorm, grouped-query attention, SwiGLU; (B, T, D) -> same."""

    def __init__(self, config: LlamaConfig, rotary: Rotary):
        super().__init__()
        self.norm1 = RMSNorm(config.emb_dim, config.norm_eps)
        self.attention = GroupedQueryAttention(config, rotary)
        self.norm2 = RMSNorm(config.emb_dim, config.norm_eps)
        self.feed_forward = SwiGLU(config.emb_dim, config.hidden_dim)

    def forward(self, x: torch.Tensor, cache=None, pad_left=None) -> torch.Tensor:
        x = x + self.attention(self.norm1(x), cache, pad_left)
        return x + self.feed_forward(self.norm2(x))


class LlamaModel(Decoder):
    """A Llama-style decoder (Touvron et al., 2023): RMSNorm, RoPE, SwiGLU, GQA."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        rotary = Rotary(config.head_dim, config.context_length, config.rope_base)
        self.tok_emb = nn.Embedding(config.vocab_size, config.emb_dim)
        self.blocks = nn.ModuleList(
            LlamaBlock(config, rotary) for _ in range(config.n_layers)
        )
        self.final_norm = RMSNorm(config.emb_dim, config.norm_eps)
        self.out_head = nn.Linear(config.emb_dim, config.vocab_size, bias=False)
        self.tie()
        initialise(self)
        use_fast_linear(self)

    def embed(
        self, token_ids: torch.Tensor, n_past: int = 0, pad_left=None
    ) -> torch.Tensor:
        """Return the token vectors (B, T, D) of token_ids (B, T), without positions."""
        return self.tok_emb(token_ids)
