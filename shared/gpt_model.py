"""A complete GPT-2, built part by part, whose 124 million parameters you can count by
hand, and which writes its first (nonsense) text.

Generated from ch04_gpt_model/ch04_gpt_model.ipynb by `python -m shared.export`;
edit the notebook, not this file.
"""

import math
import platform
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from shared.attention import KVCache, MultiHeadAttention

__all__ = [
    "LayerNorm", "GELU", "FeedForward", "onednn_is_faster", "USE_ONEDNN",
    "onednn_product", "OneDNNLinear", "onednn_can", "Linear", "use_fast_linear",
    "TransformerBlock", "DecoderConfig", "GPTConfig", "token_positions", "Decoder",
    "GPTModel", "initialise", "count_parameters", "GPT_CONFIGS",
]  # fmt: skip


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al., 2016) of the last axis: (..., D) -> (..., D).

    Mean 0 and biased variance 1, then times `weight` (D,) plus `bias` (D,).
    """

    def __init__(self, emb_dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(emb_dim))
        self.bias = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class GELU(nn.Module):
    """Gaussian error linear unit (Hendrycks and Gimpel, 2016), GPT-2's tanh form."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    """Two linear layers, a GELU between, for each token alone: (..., D) -> (..., D)."""

    def __init__(self, emb_dim: int):
        super().__init__()
        self.expand = nn.Linear(emb_dim, 4 * emb_dim)
        self.gelu = GELU()
        self.project = nn.Linear(4 * emb_dim, emb_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(self.gelu(self.expand(x)))


def onednn_is_faster() -> bool:
    """Return whether oneDNN should do float32 products: where MKL meets an AMD CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    maker = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    has_both = torch.backends.mkl.is_available() and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    )
    return has_both and "AuthenticAMD" in maker


USE_ONEDNN = onednn_is_faster()


def onednn_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
):
    """Return x @ weight.T + bias, computed by oneDNN."""
    bias = None if bias is None else bias.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OneDNNLinear(torch.autograd.Function):
    """The product and its gradients by oneDNN; once differentiable."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return onednn_product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])  # (B T, d_out)
        grad_x = onednn_product(grad, weight.T) if needs_x else None
        grad_weight = (
            onednn_product(rows.T, x.reshape(-1, x.shape[-1]).T)
            if needs_weight
            else None
        )
        return grad_x, grad_weight, rows.sum(dim=0) if needs_bias else None


def onednn_can(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether oneDNN can take this product: plain float32 on the CPU."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    usual = all(
        t.dtype == torch.float32 and t.device.type == "cpu" for t in (x, weight)
    )
    return usual and x.numel() > 0 and x.shape[-1] == weight.shape[1]


class Linear(nn.Linear):
    """An nn.Linear on the faster of PyTorch's two libraries; same weights, same result.

    Only the first derivative is defined; for torch.func, use nn.Linear.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not USE_ONEDNN or not onednn_can(x, self.weight):
            return F.linear(x, self.weight, self.bias)
        product = OneDNNLinear.apply if torch.is_grad_enabled() else onednn_product
        return product(x, self.weight, self.bias)


def use_fast_linear(model: nn.Module) -> None:
    """Make every nn.Linear of the model a Linear, in place; the weights stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


class TransformerBlock(nn.Module):
    """Pre-norm block of GPT-2: x + attention(norm(x)), then x + feed_forward(norm(x)).

    (B, T, D) -> (B, T, D); `cache` and `pad_left` are handed to the attention.
    """

    def __init__(self, config: "GPTConfig"):
        super().__init__()
        D = config.emb_dim
        self.norm1 = LayerNorm(D)
        self.attention = MultiHeadAttention(
            D,
            D,
            config.context_length,
            config.drop_rate,
            config.n_heads,
            config.qkv_bias,
        )
        self.norm2 = LayerNorm(D)
        self.feed_forward = FeedForward(D)
        self.dropout = nn.Dropout(config.drop_rate)

    def forward(self, x: torch.Tensor, cache=None, pad_left=None) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), cache, pad_left))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class DecoderConfig:
    """What the configurations of all models check, and what follows from their numbers.

    Raises ValueError for whole numbers below 1, and for heads that do not divide
    emb_dim.
    """

    def __post_init__(self):
        for name in [field.name for field in fields(self) if field.type is int]:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"{name} must be a whole number of at least 1, got {value!r}"
                )
        if self.emb_dim % self.n_heads:
            raise ValueError(
                f"{self.n_heads} heads do not divide emb_dim = {self.emb_dim}"
            )

    @property
    def head_dim(self) -> int:
        """The numbers in a head, K = D // H."""
        return self.emb_dim // self.n_heads


@dataclass(frozen=True)
class GPTConfig(DecoderConfig):
    """What a GPTModel looks like; by default as GPT-2 124M, without QKV biases."""

    vocab_size: int = 50_257
    context_length: int = 1024  # most tokens that the model can see
    emb_dim: int = 768  # D
    n_heads: int = 12  # H
    n_layers: int = 12
    drop_rate: float = 0.0  # GPT-2 was trained with 0.1
    qkv_bias: bool = False  # GPT-2 has them
    tie_weights: bool = True  # out_head and tok_emb share one matrix

    @property
    def n_kv_heads(self) -> int:
        """The heads whose keys and values are cached: all of them."""
        return self.n_heads


def token_positions(
    n_tokens: int, n_past: int = 0, pad_left: torch.Tensor | None = None, device=None
) -> torch.Tensor:
    """Return the positions of n_tokens tokens after n_past cached ones: (T,) or (B, T).

    With `pad_left` (B,) they are counted from each row's first real token; padding gets
    0.
    """
    position = torch.arange(n_past, n_past + n_tokens, device=device)  # (T,)
    if pad_left is None:
        return position
    return (position - pad_left.to(position.device)[:, None]).clamp(min=0)  # (B, T)


class Decoder(nn.Module):
    """A decoder-only language model. Subclasses define `embed` and set the attributes

    config, tok_emb, blocks, final_norm and out_head. Replacing out_head, by two classes
    say, never changes tok_emb, tied or not.
    """

    def forward(
        self, token_ids: torch.Tensor, cache=None, *, pad_left=None
    ) -> torch.Tensor:
        """Return the logits (B, T, V) for token_ids (B, T) int64.

        With `cache` (see new_cache) the tokens continue those in it, and are added to
        it. `pad_left` (B,) int64: how many padding tokens each row starts with, cached
        part included. Raises ValueError for another shape, or more tokens than the
        context (padding counts).
        """
        return self.out_head(self.hidden_states(token_ids, cache, pad_left=pad_left))

    def hidden_states(
        self, token_ids: torch.Tensor, cache=None, *, pad_left=None
    ) -> torch.Tensor:
        """Return what forward hands to out_head: (B, T, D), after final_norm."""
        n_past = 0 if cache is None else cache.length
        most = self.config.context_length
        if token_ids.ndim != 2 or not 1 <= token_ids.shape[1] <= most - n_past:
            found = f"token ids {tuple(token_ids.shape)} after {n_past} cached ones"
            raise ValueError(f"{found}: expected (B, T) with 1 to {most} tokens in all")
        x = self.embed(token_ids, n_past, pad_left)  # (B, T, D)
        for i, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache.layer(i), pad_left)
        return self.final_norm(x)

    def tie(self) -> None:
        """Let out_head and tok_emb share one matrix, if the configuration says so."""
        if self.config.tie_weights:
            self.out_head.weight = self.tok_emb.weight

    def new_cache(self, batch_size: int, max_tokens: int) -> KVCache:
        """Return an empty cache for max_tokens tokens of batch_size rows."""
        config, weight = self.config, self.tok_emb.weight
        kind = weight.device.type
        # Mixed precision: keys come in another dtype
        mixed = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if mixed else weight.dtype
        sizes = (
            config.n_layers,
            batch_size,
            config.n_kv_heads,
            max_tokens,
            config.head_dim,
        )
        return KVCache(*sizes, dtype=dtype, device=weight.device)


class GPTModel(Decoder):
    """GPT-2 (Radford et al., 2019): learned positions, pre-norm blocks, tied head."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.emb_dim)
        self.pos_emb = nn.Embedding(config.context_length, config.emb_dim)
        self.dropout = nn.Dropout(config.drop_rate)
        self.blocks = nn.ModuleList(
            TransformerBlock(config) for _ in range(config.n_layers)
        )
        self.final_norm = LayerNorm(config.emb_dim)
        self.out_head = nn.Linear(config.emb_dim, config.vocab_size, bias=False)
        self.tie()
        initialise(self)
        use_fast_linear(self)

    def embed(
        self, token_ids: torch.Tensor, n_past: int = 0, pad_left=None
    ) -> torch.Tensor:
        """Return token plus position vectors (B, T, D) of token_ids (B, T)."""
        positions = token_positions(
            token_ids.shape[1], n_past, pad_left, token_ids.device
        )
        return self.dropout(self.tok_emb(token_ids) + self.pos_emb(positions))


def initialise(model: Decoder, std: float = 0.02) -> None:
    """Draw weights after GPT-2's paper: normal, smaller ones into the stream."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            into_stream = name.endswith(("out_proj", "project"))
            scale = 1 / math.sqrt(2 * model.config.n_layers) if into_stream else 1.0
            nn.init.normal_(module.weight, std=std * scale)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    """Return how many numbers the model has, shared ones once; or only trained ones."""
    return sum(
        p.numel() for p in model.parameters() if p.requires_grad or not trainable
    )


GPT_CONFIGS = {
    "124M": GPTConfig(qkv_bias=True),
    "355M": GPTConfig(emb_dim=1024, n_heads=16, n_layers=24, qkv_bias=True),
    "774M": GPTConfig(emb_dim=1280, n_heads=20, n_layers=36, qkv_bias=True),
    "1558M": GPTConfig(emb_dim=1600, n_heads=25, n_layers=48, qkv_bias=True),
    "mini": GPTConfig(6400, 512, emb_dim=512, n_heads=8, n_layers=16),
}
