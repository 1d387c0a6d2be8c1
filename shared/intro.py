"""A language model that fits on one page: it counts, it predicts, it writes, and then
it learns the same numbers by gradient descent.

Generated from ch01_intro/ch01_intro.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

import torch

__all__ = ["BigramModel"]


# Section 1.4: Can counting write?
class BigramModel:
    """P(next id | current id), counted, with additive (Laplace) smoothing.

    Works on any integer ids, characters or tokens. Its table has V x V entries, 8 bytes
    each: 39 KB for 70 characters, 134 MB for a vocabulary of 4,096 tokens.

    >>> model = BigramModel().fit([0, 1, 0, 1, 0], vocab_size=2, alpha=0)
    >>> model.probabilities().tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """

    def fit(self, token_ids, vocab_size: int, alpha: float = 1.0) -> "BigramModel":
        """Count the neighbours in `token_ids` (N,) int; add `alpha` to each count.

        Returns itself. Raises ValueError for fewer than two ids, an id outside
        0 ... vocab_size - 1, or alpha < 0.
        """
        if not alpha >= 0:
            raise ValueError(f"alpha must be at least 0, got {alpha}")
        ids = self._checked(token_ids, vocab_size)
        pair_number = ids[:-1] * vocab_size + ids[1:]
        counts = torch.bincount(pair_number, minlength=vocab_size**2)
        self.counts = counts.view(vocab_size, vocab_size)  # (V, V)
        self.vocab_size = vocab_size
        self.alpha = alpha
        return self

    def probabilities(self) -> torch.Tensor:
        """Return the table (V, V) float64; row i is the distribution of what follows i.

        With alpha = 0 the row of an id that was never followed by anything is all
        zeros.
        """
        smoothed = self.counts.to(torch.float64) + self.alpha
        return smoothed / smoothed.sum(dim=1, keepdim=True).clamp_min(1e-300)

    def cross_entropy(self, token_ids) -> float:
        """Return the mean of -log P(next | current) over `token_ids` (N,), in nats."""
        ids = self._checked(token_ids, self.vocab_size)
        return -self.probabilities()[ids[:-1], ids[1:]].log().mean().item()

    def sample(
        self, start: int, n: int, generator: torch.Generator | None = None
    ) -> list[int]:
        """Return `n` ids that continue `start`, each drawn from the row of the last."""
        edges = self.probabilities().cumsum(dim=1)  # (V, V)
        ids = [start]
        for number in torch.rand(n, generator=generator, dtype=torch.float64):
            row = edges[ids[-1]]
            if row[-1] == 0:
                raise ValueError(f"nothing ever followed id {ids[-1]}; use alpha > 0")
            ids.append(int(torch.searchsorted(row, number * row[-1], right=True)))
        return ids[1:]

    @staticmethod
    def _checked(token_ids, vocab_size: int) -> torch.Tensor:
        ids = torch.as_tensor(token_ids)
        found = f"got {[*ids.shape]} of {ids.dtype}"
        if ids.ndim != 1 or len(ids) < 2 or ids.is_floating_point():
            raise ValueError(f"a row of 2 or more ids is needed, {found}")
        low, high = ids.min(), ids.max()
        if low < 0 or high >= vocab_size:
            raise ValueError(f"ids {low} to {high} are outside 0 ... {vocab_size - 1}")
        return ids.to(torch.int64)
