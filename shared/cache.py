"""You build the cache with which a model writes: made once, filled word by word, and
ready for several texts of unequal length.

Generated from ch03_attention/ch03_cache.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

import torch

__all__ = ["LayerCache", "KVCache"]


# Section 3.12: What does a cache save, and what does it cost?
class LayerCache:
    """Room for the keys and values of one attention layer, filled from the left."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        self.keys = keys  # (B, H, M, K), M tokens at most
        self.values = values  # the same
        self.length = 0

    def append(
        self, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values (B, H, T, K) of new tokens; return views of all so far.

        They are (B, H, S, K). Raises ValueError, and stores nothing, if the cache is
        full or was made for another dtype or batch. For inference: no gradient flows
        into what is stored.
        """
        start = self.length
        end = start + keys.shape[2]
        if end > self.keys.shape[2]:
            raise ValueError(
                f"the cache is full: {start} of {self.keys.shape[2]} tokens used, "
                f"{end - start} more do not fit"
            )
        made_for = self.keys.dtype, *self.keys.shape[:2]
        found = keys.dtype, *keys.shape[:2]
        if found != made_for:  # (one row would be copied to all, without a word)
            raise ValueError(f"the cache was made for {made_for}, got {found}")
        self.keys[:, :, start:end] = keys.detach()
        self.values[:, :, start:end] = values.detach()
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """Preallocated keys and values of a whole model: `layers` has a LayerCache each.

    Takes 2 x n_layers x batch_size x n_kv_heads x max_tokens x head_dim numbers of
    `dtype`. `pad_left` (B,) int64 tells how many padding tokens each row starts with;
    the model that is called with the cache masks them. Raises ValueError for a size
    below 1, or a `pad_left` of another shape or outside 0 ... max_tokens - 1.
    """

    def __init__(
        self,
        n_layers: int,
        batch_size: int,
        n_kv_heads: int,
        max_tokens: int,
        head_dim: int,
        *,
        pad_left: torch.Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        sizes = (n_layers, batch_size, n_kv_heads, max_tokens, head_dim)
        if min(sizes) < 1:
            raise ValueError(f"all sizes of a cache must be at least 1, got {sizes}")
        if pad_left is not None:
            allowed = pad_left.clamp(0, max_tokens - 1)
            whole = not pad_left.is_floating_point() and pad_left.equal(allowed)
            if pad_left.shape != (batch_size,) or not whole:
                raise ValueError(
                    f"pad_left must be {batch_size} numbers from 0 to "
                    f"{max_tokens - 1}, got {pad_left.tolist()}"
                )
            pad_left = pad_left.to(device)
        keys, values = torch.empty(2, *sizes, dtype=dtype, device=device)
        self.layers = [LayerCache(k, v) for k, v in zip(keys, values, strict=True)]
        self.pad_left = pad_left

    @property
    def batch_size(self) -> int:
        """The number of rows, B."""
        return len(self.layers[0].keys)

    @property
    def length(self) -> int:
        """The number of tokens in the cache, padding included."""
        return self.layers[0].length
