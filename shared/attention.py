"""The layer that lets every token look back at the others, from a Python loop to the
batched multi-head attention with a cache that the rest of the course trains and
generates with.

Generated from ch03_attention/ch03_attention.ipynb by `python -m shared.export`;
edit the notebook, not this file.
"""

import math

import matplotlib as mpl
import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    "future_leak", "attention_mask", "split_heads", "attend", "MultiHeadAttention",
    "check_input", "plot_attention", "LayerCache", "KVCache",
]  # fmt: skip


def future_leak(layer, n_tokens: int, d_in: int, seed: int = 0) -> float:
    """Return the largest gradient of an output with respect to an input after it.

    0.0 means that no gradient of `layer`, any callable from (1, T, d_in) to (1, T,
    ...), reaches a later input. That finds every differentiable leak; one through a
    hard decision (argmax, a threshold) has no gradient. Outputs are weighted at random,
    so that leaks cannot cancel. Raises ValueError for fewer than 2 tokens or a gradient
    that is not finite.
    """
    if n_tokens < 2:
        raise ValueError(f"a leak test needs at least 2 tokens, got {n_tokens}")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, n_tokens, d_in, generator=generator).requires_grad_()
    out = layer(x)
    probe = torch.randn(out.shape, generator=generator)
    largest = 0.0
    for t in range(n_tokens - 1):
        (gradient,) = torch.autograd.grad(
            (out * probe)[0, t].sum(), x, retain_graph=True
        )
        if not gradient.isfinite().all():
            raise ValueError(f"the gradient of output {t} is not finite")
        largest = max(largest, gradient[0, t + 1 :].abs().max().item())
    return largest


def attention_mask(
    n_queries: int,
    n_keys: int,
    pad_left: torch.Tensor | None = None,
    device: torch.device | None = None,
) -> torch.Tensor | None:
    """Return who may look at whom, True for yes: (T, S), padded (B, 1, T, S), or None.

    The n_queries T are the last of the n_keys S positions. `pad_left` (B,) int64 tells
    how many positions at the start of each row are padding: nobody looks at them, but
    they look at themselves, because a softmax over nothing is not a number. None means
    that no mask is needed beyond the kernel's own `is_causal`, or none at all for a
    single query. Raises ValueError unless 1 <= n_queries <= n_keys.
    """
    if not 1 <= n_queries <= n_keys:
        raise ValueError(f"{n_queries} queries cannot be the last of {n_keys} keys")
    if pad_left is None and n_queries in (1, n_keys):
        return None
    key = torch.arange(n_keys, device=device)  # (S,)
    query = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]  # (T, 1)
    past = key <= query  # (T, S)
    if pad_left is None:
        return past
    real = key >= pad_left.to(key.device)[:, None]  # (B, S)
    return ((past & real[:, None, :]) | (key == query))[:, None]  # (B, 1, T, S)


def split_heads(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Return x (B, T, H * K) cut into heads of head_dim numbers: view (B, H, T, K)."""
    return x.view(*x.shape[:2], -1, head_dim).transpose(1, 2)


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cache: "LayerCache | None" = None,
    pad_left: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Return the contexts (B, T, H * K) of queries (B, H, T, K) of the newest T tokens.

    Keys and values (B, H, T, K) may have fewer heads, each of which then serves several
    queries. With `cache` they are added to it, and the queries look at all that it
    holds.
    """
    if cache is not None:
        keys, values = cache.append(keys, values)  # (B, H, S, K)
    n_heads, n_queries, n_keys = *queries.shape[1:3], keys.shape[2]
    mask = attention_mask(n_queries, n_keys, pad_left, queries.device)
    heads = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None and n_queries > 1,
        dropout_p=dropout,
        enable_gqa=keys.shape[1] < n_heads,
    )  # (B, H, T, K)
    return heads.transpose(1, 2).flatten(2)  # (B, T, H, K) -> (B, T, H * K)


class MultiHeadAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017): (B, T, d_in) -> (B, T, d_out).

    All heads in one product, attention in one fused call. Without dropout and padding,
    training memory grows linearly with T, because no T x T matrix is kept.

    Weights of other layers: those of single heads are stacked, row below row. GPT-2
    stores one matrix c_attn.weight (D, 3 D): W_query, W_key and W_value are its three
    parts of D columns, transposed, and c_attn.bias (3 D) holds their biases
    (qkv_bias=True); c_proj.weight transposed is out_proj.weight, and c_proj.bias is
    out_proj.bias.

    Raises ValueError if d_out cannot be shared out among the heads.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
    ):
        super().__init__()
        if num_heads < 1 or d_out < 1 or d_out % num_heads:
            raise ValueError(
                f"d_out = {d_out} cannot be shared out among {num_heads} heads"
            )
        self.d_in, self.num_heads, self.head_dim = d_in, num_heads, d_out // num_heads
        self.context_length, self.dropout = context_length, dropout
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)

    def forward(
        self,
        x: torch.Tensor,
        cache: "LayerCache | None" = None,
        pad_left: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the context vectors (B, T, d_out) of x (B, T, d_in).

        With `cache`, x continues the tokens whose keys and values are in it, and is
        added to it. `pad_left` (B,) int64 counts the padding at the start of each row,
        cached part included. Raises ValueError for another width than d_in, another
        number of rows in `pad_left`, or more tokens than the context, padding and the
        cached part counted.
        """
        n_past = 0 if cache is None else cache.length
        check_input(x, self.d_in, self.context_length, n_past, pad_left)
        queries, keys, values = self._project(x)  # (B, H, T, K) each
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(queries, keys, values, cache, pad_left, dropout))

    def attention_weights(
        self, x: torch.Tensor, pad_left: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the weights (B, H, T, T) of `forward` in evaluation, uncached."""
        check_input(x, self.d_in, self.context_length, pad_left=pad_left)
        queries, keys, _ = self._project(x)
        scores = queries @ keys.mT / math.sqrt(self.head_dim)  # (B, H, T, T)
        mask = attention_mask(x.shape[1], x.shape[1], pad_left, x.device)
        if mask is None:
            mask = torch.ones(
                scores.shape[-2:], dtype=torch.bool, device=x.device
            ).tril()
        return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)

    def _project(self, x: torch.Tensor) -> list[torch.Tensor]:
        projections = (self.W_query, self.W_key, self.W_value)
        return [split_heads(W(x), self.head_dim) for W in projections]


def check_input(
    x: torch.Tensor,
    d_in: int,
    context_length: int,
    n_past: int = 0,
    pad_left: torch.Tensor | None = None,
) -> None:
    """Raise ValueError for a shape of x or pad_left, or a length, that does not fit."""
    if x.ndim != 3 or x.shape[-1] != d_in:
        raise ValueError(
            f"expected an input of shape (B, T, {d_in}), got {tuple(x.shape)}"
        )
    if n_past + x.shape[1] > context_length:
        raise ValueError(
            f"{n_past} tokens before and {x.shape[1]} now are more than the context of "
            f"{context_length} tokens"
        )
    if pad_left is not None and pad_left.shape != x.shape[:1]:
        raise ValueError(
            f"pad_left {tuple(pad_left.shape)} does not fit {x.shape[0]} rows"
        )


def plot_attention(
    weights: torch.Tensor, tokens: list[str], titles: list[str] | None = None
):
    """Draw attention weights (H, T, T) or (T, T) over `tokens` as heat maps: a figure.

    Rows look, columns are looked at. Raises ValueError if the shapes do not fit.
    """
    import matplotlib.pyplot as plt

    weights = weights.detach().cpu()
    weights = weights[None] if weights.ndim == 2 else weights  # (H, T, T)
    n_heads, n_tokens = weights.shape[0], len(tokens)
    if weights.shape[1:] != (n_tokens, n_tokens):
        raise ValueError(f"weights {tuple(weights.shape)} do not fit {n_tokens} tokens")
    columns = min(n_heads, 4)
    rows = math.ceil(n_heads / columns)
    size = (2.1 * columns + 1.0, 2.1 * rows + 0.6)
    fig, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained"
    )
    shades = mpl.colors.LinearSegmentedColormap.from_list(
        "attention", ["white", "#E69F00"]
    )
    for n, ax in enumerate(axes.flat):
        if n >= n_heads:
            ax.axis("off")
            continue
        image = ax.imshow(weights[n].numpy(), vmin=0, vmax=1, cmap=shades)
        ax.set_title(titles[n] if titles else f"head {n}", fontsize=10)
        ax.set_xticks(range(n_tokens), tokens, rotation=90, fontsize=8)
        ax.set_yticks(
            range(n_tokens), tokens if n % columns == 0 else [""] * n_tokens, fontsize=8
        )
        ax.grid(False)
    fig.colorbar(image, ax=axes, label="weight", shrink=0.8)
    return fig


class LayerCache:
    """Room for the keys and values of one attention layer, filled from the left."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        self.keys, self.values = keys, values  # (B, H, M, K) each, M tokens at most
        self.length = 0

    def append(
        self, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values (B, H, T, K); return views of all so far, (B, H, S, K).

        Raises ValueError, and stores nothing, if they do not fit. For inference: no
        gradient flows into what is stored.
        """
        if values.shape != keys.shape or values.dtype != keys.dtype:
            raise ValueError(
                f"keys {tuple(keys.shape)} {keys.dtype} and "
                f"values {tuple(values.shape)} {values.dtype} differ"
            )
        batch, heads, room, head_dim = self.keys.shape
        new = keys.shape[2]
        if (keys.shape[0], keys.shape[1], keys.shape[3]) != (batch, heads, head_dim):
            raise ValueError(
                f"the cache was made for shape ({batch}, {heads}, T, {head_dim}), "
                f"got {tuple(keys.shape)}"
            )
        kind = (self.keys.dtype, self.keys.device)
        if (keys.dtype, keys.device) != kind:
            raise ValueError(
                f"the cache was made for {kind}, got {(keys.dtype, keys.device)}"
            )
        if self.length + new > room:
            raise ValueError(
                f"the cache is full: {self.length} of {room} tokens used, "
                f"{new} more do not fit"
            )
        end = self.length + new
        self.keys[:, :, self.length : end] = keys.detach()
        self.values[:, :, self.length : end] = values.detach()
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """Preallocated keys and values of a model: one LayerCache for each attention layer.

    Takes 2 x n_layers x batch_size x n_kv_heads x max_tokens x head_dim numbers of
    `dtype`.
    """

    def __init__(
        self,
        n_layers: int,
        batch_size: int,
        n_kv_heads: int,
        max_tokens: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        sizes = (n_layers, batch_size, n_kv_heads, max_tokens, head_dim)
        if min(sizes) < 1:
            raise ValueError(f"all sizes of a cache must be at least 1, got {sizes}")
        room = torch.empty(2, *sizes, dtype=dtype, device=device)
        self.layers = [LayerCache(room[0, n], room[1, n]) for n in range(n_layers)]

    @property
    def length(self) -> int:
        """The number of tokens in the cache."""
        return self.layers[0].length

    def layer(self, i: int) -> LayerCache:
        """Return the part for attention layer i."""
        return self.layers[i]

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        for layer in self.layers:
            layer.length = 0
