"""You build three small language models: one that counts, one that learns the same
numbers from its mistakes, and one that finds out by itself which letters are alike.

Generated from ch01_intro/ch01_intro.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

import torch

__all__ = ["BigramModel"]


# Section 1.3: Can counting write? Bigrams
def spin(weights: torch.Tensor, generator: torch.Generator | None) -> int:
    """Return index i of weights (V,) with a probability proportional to weights[i]."""
    edges = weights.cumsum(dim=0)  # (V,) the right edge of each stretch
    if edges[-1] == 0:
        raise ValueError("nothing ever followed this id: use alpha > 0")
    number = torch.rand(1, generator=generator, dtype=torch.float64)
    return int(torch.searchsorted(edges, number * edges[-1], right=True))


def checked(token_ids, vocab_size: int) -> torch.Tensor:
    """Return the ids as a tensor (N,) int64, or raise ValueError."""
    ids = torch.as_tensor(token_ids)
    if ids.ndim != 1 or len(ids) < 2 or ids.is_floating_point():
        found = f"got {[*ids.shape]} of {ids.dtype}"
        raise ValueError(f"a row of 2 or more ids is needed, {found}")
    low, high = ids.min(), ids.max()
    if low < 0 or high >= vocab_size:
        raise ValueError(f"ids {low} to {high} are outside 0 ... {vocab_size - 1}")
    return ids.to(torch.int64)


class BigramModel:
    """P(next id | current id), counted, with additive (Laplace) smoothing.

    Works on any integer ids, characters or tokens. Its table has V x V entries, 8 bytes
    each: 40 KB for 71 characters, 134 MB for a vocabulary of 4,096 tokens. Raises
    ValueError for fewer than two ids or an id outside 0 ... V - 1.

    >>> model = BigramModel().fit([0, 1, 0, 1, 0], vocab_size=2, alpha=0)
    >>> model.probabilities().tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """

    def fit(self, token_ids, vocab_size: int, alpha: float = 1.0) -> "BigramModel":
        """Count the neighbours in token_ids (N,), add alpha >= 0; return the model."""
        if not alpha >= 0:
            raise ValueError(f"alpha must be at least 0, got {alpha}")
        ids = checked(token_ids, vocab_size)
        pair_number = ids[:-1] * vocab_size + ids[1:]
        counts = torch.bincount(pair_number, minlength=vocab_size**2)
        self.counts = counts.view(vocab_size, vocab_size)  # (V, V)
        self.smoothed = self.counts.double() + alpha
        return self

    def probabilities(self) -> torch.Tensor:
        """Return the table (V, V) float64; row i is the distribution of what follows i.

        With alpha = 0 the row of an id that nothing ever followed is all zeros.
        """
        totals = self.smoothed.sum(dim=1, keepdim=True)  # (V, 1)
        return self.smoothed / totals.clamp_min(1e-300)  # 0 / 0 would be no number

    def cross_entropy(self, token_ids) -> float:
        """Return the mean of -log P(next | current) over `token_ids` (N,), in nats."""
        ids = checked(token_ids, len(self.counts))
        return -self.probabilities()[ids[:-1], ids[1:]].log().mean().item()

    def sample(
        self, start: int, n: int, generator: torch.Generator | None = None
    ) -> list[int]:
        """Return `n` ids that continue `start`, each drawn from the row of the last."""
        ids = [start]
        for _ in range(n):
            ids.append(spin(self.smoothed[ids[-1]], generator))
        return ids[1:]
