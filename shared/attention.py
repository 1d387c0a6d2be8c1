"""You build the layer with which every token looks back at the tokens before it, from
arithmetic that you can check with a pencil to the multi-head attention that the rest of
the course uses, and you watch it learn where to look.

Generated from ch03_attention/ch03_attention.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.colors import LinearSegmentedColormap
from torch import nn

from shared.support import require_whole

__all__ = [
    "future_leak", "attention_mask", "split_heads", "attend", "MultiHeadAttention",
    "plot_attention",
]  # fmt: skip


# Section 3.5: How is the future hidden?
def future_leak(layer, n_tokens: int, d_in: int, seed: int = 0) -> float:
    """Return the largest gradient of an output with respect to a later input.

    `layer` is any callable from (1, T, d_in) to (1, T, ...). More than 0.0 proves a
    leak; 0.0 means that no leak is active at the one random input of this test. A leak
    through a hard decision (argmax, a threshold) has no gradient, and one beyond
    n_tokens is not reached. Outputs are weighted at random, so that leaks cannot
    cancel. Raises ValueError for fewer than 2 tokens or a gradient that is not finite.
    """
    require_whole(2, n_tokens=n_tokens)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, n_tokens, d_in, generator=generator).requires_grad_()
    out = layer(x)
    probe = torch.randn(out.shape, generator=generator)
    leaks = []
    for t in range(n_tokens - 1):
        score = (out * probe)[0, t].sum()
        gradient = torch.autograd.grad(score, x, retain_graph=True)[0]
        if not gradient.isfinite().all():
            raise ValueError(f"the gradient of output {t} is not finite")
        leaks.append(gradient[0, t + 1 :].abs().max().item())
    return max(leaks)


# Section 3.8: What does attention cost?
def attention_mask(
    n_queries: int,
    n_keys: int,
    pad_left: torch.Tensor | None = None,
    device: torch.device | None = None,
) -> torch.Tensor | None:
    """Return who may look at whom, True for yes: (T, S), (B, 1, T, S) or None.

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
    # A padding token looks at itself, so that its softmax is not over nothing
    return ((past & real[:, None, :]) | (key == query))[:, None]  # (B, 1, T, S)


def split_heads(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Return x (B, T, H * K) cut into heads of head_dim numbers: (B, H, T, K)."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None = None,
    cache=None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Return the context vectors (B, T, H * K) for queries (B, H, T, K).

    Keys and values (B, H, T, K) may have fewer heads, each of which then serves several
    query heads. With `cache` (a shared.cache.LayerCache) they are added to it, and the
    queries look at all that it holds. `mask` is what attention_mask returns; None is
    causal, without padding.
    """
    if cache is not None:
        keys, values = cache.append(keys, values)  # (B, H, S, K)
    n_queries, n_keys = queries.shape[2], keys.shape[2]
    if mask is None and 1 < n_queries < n_keys:
        mask = attention_mask(n_queries, n_keys, device=queries.device)
    heads = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None and n_queries > 1,
        dropout_p=dropout,
        enable_gqa=keys.shape[1] < queries.shape[1],
    )  # (B, H, T, K)
    return heads.transpose(1, 2).flatten(2)  # (B, T, H, K) -> (B, T, H * K)


class MultiHeadAttention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al., 2017).

    (B, T, d_in) -> (B, T, d_out). All heads in one product, attention in one fused
    call. Without dropout and padding, training memory grows linearly with T, because no
    T x T matrix is kept.

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
        n_heads: int,
        dropout: float = 0.0,
        qkv_bias: bool = False,
    ):
        super().__init__()
        if n_heads < 1 or d_out < 1 or d_out % n_heads:
            raise ValueError(f"{n_heads} heads cannot share out d_out = {d_out}")
        require_whole(d_in=d_in, d_out=d_out, n_heads=n_heads)
        self.head_dim = d_out // n_heads
        self.dropout = dropout
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, cache=None
    ) -> torch.Tensor:
        """Return the context vectors (B, T, d_out) of x (B, T, d_in).

        With `cache`, x continues the tokens whose keys and values are in it, and is
        added to it. `mask` is that of attention_mask; None is causal, without padding.
        """
        queries = split_heads(self.W_query(x), self.head_dim)  # (B, H, T, K)
        keys = split_heads(self.W_key(x), self.head_dim)
        values = split_heads(self.W_value(x), self.head_dim)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(queries, keys, values, mask, cache, dropout))

    def attention_weights(
        self, x: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the weights (B, H, T, T) of `forward`, without dropout or a cache."""
        queries = split_heads(self.W_query(x), self.head_dim)
        keys = split_heads(self.W_key(x), self.head_dim)
        scores = queries @ keys.mT / math.sqrt(self.head_dim)  # (B, H, T, T)
        if mask is None:
            mask = torch.ones_like(scores[0, 0], dtype=torch.bool).tril()
        return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)


# Section 3.9: Can a layer learn where to look?
def plot_attention(
    weights: torch.Tensor, tokens: list[str], titles: list[str] | None = None
) -> plt.Figure:
    """Draw attention weights (H, T, T) or (T, T) over `tokens`; return the figure.

    A heat map for each head: rows look, columns are looked at. Raises ValueError if
    there are not T tokens.
    """
    weights = weights.detach().cpu().reshape(-1, *weights.shape[-2:])  # (H, T, T)
    n_heads, n_tokens = weights.shape[:2]
    columns = min(n_heads, 4)
    rows = math.ceil(n_heads / columns)
    fig = plt.figure(figsize=(2.1 * columns + 1, 2.1 * rows + 1), layout="constrained")
    shades = LinearSegmentedColormap.from_list("attention", ["white", "#E69F00"])
    for n, head in enumerate(weights):
        ax = fig.add_subplot(rows, columns, n + 1)
        image = ax.imshow(head.numpy(), vmin=0, vmax=1, cmap=shades)
        ax.set_title(titles[n] if titles else f"head {n}", fontsize=10)
        ax.set_xticks(range(n_tokens), tokens, rotation=90, fontsize=8)
        ax.set_yticks(range(n_tokens), tokens, fontsize=8)
        ax.tick_params(labelleft=n % columns == 0)
        ax.grid(False)
    fig.colorbar(image, ax=fig.axes, label="weight", shrink=0.8)
    return fig
