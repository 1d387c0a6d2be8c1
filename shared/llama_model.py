"""You exchange four parts of your GPT, each for a reason that you can see, and
SmolLM2-135M stands there: 134,515,008 parameters, counted by you, and it writes.

Generated from ch04_gpt_model/ch04_llama_model.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from shared.attention import attend, split_heads
from shared.gpt_model import Decoder, DecoderConfig, initialise

__all__ = [
    "RMSNorm", "Rotary", "halves_to_pairs", "pairs_to_halves", "SwiGLU",
    "GroupedQueryAttention", "LlamaConfig", "SMOLLM2_135M", "LlamaBlock",
    "LlamaModel",
]  # fmt: skip


# Section 4.9: RMSNorm: is the mean needed?
class RMSNorm(nn.Module):
    """Root mean square norm (Zhang and Sennrich, 2019): (..., D) -> (..., D)."""

    def __init__(self, emb_dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(emb_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


# Section 4.10: Rotary position embedding (RoPE): how far instead of where?
class Rotary:
    """Rotary position embedding (Su et al., 2021) of pairs of neighbours.

    Pair i, the numbers 2 i and 2 i + 1 of a head, is turned by
    position * base ** (-2 i / K) radians.
    """

    def __init__(self, head_dim: int, context_length: int, base: float = 10_000.0):
        pair = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu")
        speeds = base ** (-pair / head_dim)  # (K / 2,) radians for each position
        positions = torch.arange(context_length, dtype=torch.float64, device="cpu")
        angles = torch.outer(positions, speeds)  # (context, K / 2)
        turns = torch.polar(torch.ones_like(angles), angles)  # cos + i sin
        # One table, and a copy on every device that asks
        self.table = {torch.device("cpu"): turns.to(torch.complex64)}

    def turns(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the turns of positions (T,) or (B, T) int64: (..., T, 1, K / 2)."""
        if positions.device not in self.table:
            table = self.table[torch.device("cpu")]
            self.table[positions.device] = table.to(positions.device)
        return self.table[positions.device][positions][..., None, :]

    def __call__(self, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """Return x (B, T, H, K) turned by `turns`, in the same shape and dtype."""
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        # Neighbours as one complex number: (B, T, H, K / 2)
        pairs = torch.view_as_complex(precise.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


def halves_to_pairs(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Reorder rows (H * K, ...) from pairs (i, i + K / 2) to neighbours."""
    heads = weight.unflatten(0, (n_heads, 2, -1))  # (H, 2, K / 2, ...)
    return heads.transpose(1, 2).reshape(weight.shape)


def pairs_to_halves(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Reorder rows (H * K, ...) from neighbours to pairs (i, i + K / 2)."""
    heads = weight.unflatten(0, (n_heads, -1, 2))  # (H, K / 2, 2, ...)
    return heads.transpose(1, 2).reshape(weight.shape)


# Section 4.12: SwiGLU: can a hidden unit open and close?
class SwiGLU(nn.Module):
    """Gated feed-forward part (Shazeer, 2020), token by token: (..., D) -> same."""

    def __init__(self, emb_dim: int, hidden_dim: int):
        super().__init__()
        self.gate = nn.Linear(emb_dim, hidden_dim, bias=False)
        self.up = nn.Linear(emb_dim, hidden_dim, bias=False)
        self.project = nn.Linear(hidden_dim, emb_dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(F.silu(self.gate(x)) * self.up(x))


# Section 4.13: Grouped-query attention (GQA): how small can the cache be?
class GroupedQueryAttention(nn.Module):
    """Causal attention with rotary positions and shared keys and values.

    After Ainslie et al. (2023): (B, T, D) -> (B, T, D), as MultiHeadAttention; query
    head h uses key head h // (H / n_kv_heads).
    """

    def __init__(self, config: "LlamaConfig", rotary: Rotary):
        super().__init__()
        self.head_dim = config.head_dim
        self.rotary = rotary
        D, kv_dim = config.emb_dim, config.n_kv_heads * config.head_dim
        self.W_query = nn.Linear(D, D, bias=False)
        self.W_key = nn.Linear(D, kv_dim, bias=False)
        self.W_value = nn.Linear(D, kv_dim, bias=False)
        self.out_proj = nn.Linear(D, D, bias=False)

    def forward(self, x: torch.Tensor, mask, turns, cache=None) -> torch.Tensor:
        """Return the context vectors (B, T, D) of x (B, T, D).

        `mask` is that of attention_mask, `turns` those of Rotary.turns for the
        positions of x, `cache` a LayerCache that x continues and is added to.
        """
        queries = self.W_query(x).unflatten(-1, (-1, self.head_dim))  # (B, T, H, K)
        keys = self.W_key(x).unflatten(-1, (-1, self.head_dim))
        values = split_heads(self.W_value(x), self.head_dim)  # (B, H, T, K)
        queries = self.rotary(queries, turns).transpose(1, 2)  # (B, H, T, K)
        keys = self.rotary(keys, turns).transpose(1, 2)
        return self.out_proj(attend(queries, keys, values, mask, cache))


# Section 4.15: The whole model: what is left to write?
@dataclass(frozen=True)
class LlamaConfig(DecoderConfig):
    """What a LlamaModel looks like; the defaults are SmolLM2-135M.

    Raises ValueError, beside that of DecoderConfig, for n_kv_heads that do not divide
    n_heads, and for an odd head dimension.
    """

    vocab_size: int = 49_152
    context_length: int = 8192
    emb_dim: int = 576
    n_heads: int = 9
    n_layers: int = 30
    n_kv_heads: int = 3  # heads of keys and values
    hidden_dim: int = 1536  # F, the middle of the feed-forward part
    rope_base: float = 100_000.0
    norm_eps: float = 1e-5

    def __post_init__(self):
        super().__post_init__()
        self.require_whole("hidden_dim")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"{self.n_kv_heads} kv heads do not divide {self.n_heads} heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"rotary needs an even head_dim, got {self.head_dim}")


SMOLLM2_135M = LlamaConfig()


class LlamaBlock(nn.Module):
    """Pre-norm block with RMSNorm, grouped-query attention and SwiGLU.

    (B, T, D) -> (B, T, D), with `mask`, `turns` and `cache` for the attention.
    """

    def __init__(self, config: LlamaConfig, rotary: Rotary):
        super().__init__()
        self.norm1 = RMSNorm(config.emb_dim, config.norm_eps)
        self.attention = GroupedQueryAttention(config, rotary)
        self.norm2 = RMSNorm(config.emb_dim, config.norm_eps)
        self.feed_forward = SwiGLU(config.emb_dim, config.hidden_dim)

    def forward(self, x: torch.Tensor, mask, turns, cache=None) -> torch.Tensor:
        x = x + self.attention(self.norm1(x), mask, turns, cache)
        return x + self.feed_forward(self.norm2(x))


class LlamaModel(Decoder):
    """A Llama-style decoder: RMSNorm, RoPE, SwiGLU (Touvron et al., 2023), and GQA."""

    config: LlamaConfig

    def __init__(self, config: LlamaConfig):
        rotary = Rotary(config.head_dim, config.context_length, config.rope_base)
        blocks = [LlamaBlock(config, rotary) for _ in range(config.n_layers)]
        super().__init__(config, blocks, RMSNorm(config.emb_dim, config.norm_eps))
        self.rotary = rotary
        initialise(self)

    def places(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the turns of the positions, which all blocks use."""
        return self.rotary.turns(positions)
