"""A complete GPT-2, built part by part, on one page of code. You count its 124 million
parameters by hand, and watch one sentence travel through it to the guess of the next
word.

Generated from ch04_gpt_model/ch04_gpt_model.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from shared.attention import MultiHeadAttention, attention_mask
from shared.cache import KVCache

__all__ = [
    "LayerNorm", "GELU", "FeedForward", "DecoderConfig", "GPTConfig",
    "TransformerBlock", "initialise", "Decoder", "GPTModel", "count_parameters",
    "GPT_CONFIGS",
]  # fmt: skip


# Section 4.2: Layer normalisation: how do the numbers stay in range?
class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al., 2016) of the last axis: (..., D) -> (..., D).

    Mean 0 and biased variance 1, then times `weight` (D,) plus `bias` (D,).
    """

    def __init__(self, emb_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(emb_dim))
        self.bias = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


# Section 4.3: The MLP: where is something new worked out?
class GELU(nn.Module):
    """Gaussian error linear unit (Hendrycks and Gimpel, 2016), GPT-2's tanh form."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    """Two linear layers with a GELU between, each token alone: (..., D) -> (..., D)."""

    def __init__(self, emb_dim: int):
        super().__init__()
        self.expand = nn.Linear(emb_dim, 4 * emb_dim)
        self.gelu = GELU()
        self.project = nn.Linear(4 * emb_dim, emb_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(self.gelu(self.expand(x)))


# Section 4.5: The transformer block: how do the parts go together?
@dataclass(frozen=True)
class DecoderConfig:
    """What the configurations of all models have, and what follows from it.

    Raises ValueError for whole numbers below 1, and for heads that do not divide
    emb_dim.
    """

    vocab_size: int  # V
    context_length: int  # most tokens that the model can see
    emb_dim: int  # D
    n_heads: int  # H
    n_layers: int
    tie_weights: bool = True  # out_head and tok_emb share one matrix

    def __post_init__(self):
        self.require_whole("vocab_size", "context_length", "emb_dim")
        self.require_whole("n_heads", "n_kv_heads", "n_layers")
        if self.emb_dim % self.n_heads:
            raise ValueError(
                f"{self.n_heads} heads do not divide emb_dim = {self.emb_dim}"
            )

    def require_whole(self, *names: str) -> None:
        """Raise ValueError unless these settings are whole numbers of at least 1."""
        for name in names:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"{name} must be a whole number of at least 1, got {value!r}"
                )

    @property
    def n_kv_heads(self) -> int:
        """The heads whose keys and values are cached: all, if nothing else is said."""
        return self.n_heads

    @property
    def head_dim(self) -> int:
        """The numbers in a head, K = D // H."""
        return self.emb_dim // self.n_heads


@dataclass(frozen=True)
class GPTConfig(DecoderConfig):
    """What a GPTModel looks like; by default as GPT-2 124M, without QKV biases."""

    vocab_size: int = 50_257
    context_length: int = 1024
    emb_dim: int = 768
    n_heads: int = 12
    n_layers: int = 12
    dropout: float = 0.0  # GPT-2 was trained with 0.1
    qkv_bias: bool = False  # GPT-2 has them


class TransformerBlock(nn.Module):
    """Pre-norm block of GPT-2: x + attention(norm(x)), then x + feed_forward(norm(x)).

    (B, T, D) -> (B, T, D); `mask` and `cache` are handed to the attention. `places`
    is for other models: GPT-2's positions are in x already.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        D = config.emb_dim
        self.norm1 = LayerNorm(D)
        self.attention = MultiHeadAttention(
            D, D, config.n_heads, config.dropout, config.qkv_bias
        )
        self.norm2 = LayerNorm(D)
        self.feed_forward = FeedForward(D)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: torch.Tensor, mask=None, places=None, cache=None
    ) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), mask, cache))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


# Section 4.6: The GPT
def initialise(model: "Decoder") -> None:  # Decoder: any of our models, see below
    """Draw weights: 0.02 as GPT-1's paper, less into the stream as GPT-2's."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            into_stream = name.endswith(("out_proj", "project"))
            scale = 1 / math.sqrt(2 * model.config.n_layers) if into_stream else 1.0
            nn.init.normal_(module.weight, std=0.02 * scale)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class Decoder(nn.Module):
    """A decoder-only language model: embedding, blocks, a last norm, an output head.

    Replacing out_head, by two classes say, never changes tok_emb, tied or not.
    """

    def __init__(self, config: DecoderConfig, blocks: list, final_norm: nn.Module):
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.emb_dim)
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm
        self.out_head = nn.Linear(config.emb_dim, config.vocab_size, bias=False)
        self.tie()

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.tok_emb.weight.device

    def forward(
        self, token_ids: torch.Tensor, cache: KVCache | None = None
    ) -> torch.Tensor:
        """Return the logits (B, T, V) for token_ids (B, T) int64.

        With `cache` (see new_cache) the tokens continue those in it, and are added to
        it. Raises ValueError for another shape, or more tokens than the context
        (padding counts).
        """
        return self.out_head(self.hidden_states(token_ids, cache))

    def hidden_states(
        self, token_ids: torch.Tensor, cache: KVCache | None = None
    ) -> torch.Tensor:
        """Return what forward hands to out_head: (B, T, D), after final_norm."""
        most = self.config.context_length
        positions, mask = positions_and_mask(token_ids, cache, most)
        x = self.embed(token_ids, positions)  # (B, T, D)
        places = self.places(positions)
        for i, block in enumerate(self.blocks):
            x = block(x, mask, places, None if cache is None else cache.layers[i])
        return self.final_norm(x)

    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the vectors (B, T, D) of token_ids (B, T) at their positions."""
        return self.tok_emb(token_ids)

    def places(self, positions: torch.Tensor) -> torch.Tensor:
        """Return what the blocks are told of the positions, made once for all."""
        return positions

    def tie(self) -> None:
        """Let out_head and tok_emb share one matrix, if the configuration says so."""
        if self.config.tie_weights:
            self.out_head.weight = self.tok_emb.weight

    def new_cache(
        self, batch_size: int, max_tokens: int, pad_left: torch.Tensor | None = None
    ) -> KVCache:
        """Return an empty cache for max_tokens tokens of batch_size rows.

        `pad_left` (B,) int64: how many padding tokens each row starts with.
        """
        config = self.config
        dtype = self.tok_emb.weight.dtype
        if torch.is_autocast_enabled(self.device.type):  # mixed precision
            dtype = torch.get_autocast_dtype(self.device.type)
        sizes = (config.n_layers, batch_size, config.n_kv_heads, max_tokens)
        return KVCache(
            *sizes, config.head_dim, pad_left=pad_left, dtype=dtype, device=self.device
        )


class GPTModel(Decoder):
    """GPT-2 (Radford et al., 2019): learned positions, pre-norm blocks, tied head."""

    config: GPTConfig

    def __init__(self, config: GPTConfig):
        blocks = [TransformerBlock(config) for _ in range(config.n_layers)]
        super().__init__(config, blocks, LayerNorm(config.emb_dim))
        self.pos_emb = nn.Embedding(config.context_length, config.emb_dim)
        self.dropout = nn.Dropout(config.dropout)
        initialise(self)

    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return token plus position vectors (B, T, D) of token_ids (B, T)."""
        return self.dropout(self.tok_emb(token_ids) + self.pos_emb(positions))


def positions_and_mask(
    token_ids: torch.Tensor, cache: KVCache | None, context_length: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return where the tokens (B, T) after those in the cache stand, and whom they see.

    The positions are (T,), or (B, T) if the rows start with padding; padding gets 0.
    The mask is that of attention_mask. Raises ValueError for another shape, more tokens
    than the context (padding counts), or other rows than the cache has.
    """
    n_past = 0 if cache is None else cache.length
    pad_left = None if cache is None else cache.pad_left
    if token_ids.ndim != 2 or not 1 <= token_ids.shape[1] <= context_length - n_past:
        raise ValueError(
            f"token ids {tuple(token_ids.shape)} after {n_past} cached ones: "
            f"expected (B, T) with 1 to {context_length} tokens in all"
        )
    if cache is not None and len(token_ids) != cache.batch_size:
        raise ValueError(f"{len(token_ids)} rows, but {cache.batch_size} in the cache")
    n_tokens = token_ids.shape[1]
    device = token_ids.device
    positions = torch.arange(n_past, n_past + n_tokens, device=device)  # (T,)
    if pad_left is not None:
        positions = (positions - pad_left[:, None]).clamp(min=0)  # (B, T)
    return positions, attention_mask(n_tokens, n_past + n_tokens, pad_left, device)


# Section 4.7: Parameters, memory, operations: what does the model cost?
def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    """Return how many numbers the model has, shared ones once; or only trained ones."""
    counted = (p for p in model.parameters() if p.requires_grad or not trainable)
    return sum(p.numel() for p in counted)


GPT_CONFIGS = {
    "124M": GPTConfig(qkv_bias=True),
    "355M": GPTConfig(emb_dim=1024, n_heads=16, n_layers=24, qkv_bias=True),
    "774M": GPTConfig(emb_dim=1280, n_heads=20, n_layers=36, qkv_bias=True),
    "1558M": GPTConfig(emb_dim=1600, n_heads=25, n_layers=48, qkv_bias=True),
    "mini": GPTConfig(6400, 512, emb_dim=512, n_heads=8, n_layers=16),
}
