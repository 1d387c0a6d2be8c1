"""A language model that fits on one page: it counts, it predicts, it writes, and then
it learns the same numbers by gradient descent.

Generated from ch01_intro/ch01_intro.ipynb by `python -m shared.export`;
edit the notebook, not this file.
"""

import importlib.metadata
import platform
import random
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import psutil
import torch

__all__ = [
    "check_environment", "set_seed", "get_device", "COLORS", "use_course_style",
    "BigramModel",
]  # fmt: skip


def check_environment(requirements: Path | None = None) -> list[str]:
    """Print what this machine offers the course; return what is missing, in sentences.

    Compares the installed packages with the pins in `requirements` (by default the
    course's own `requirements.txt`) and looks at the free memory. An empty list means:
    ready.
    """
    requirements = (
        requirements or Path(__file__).resolve().parent.parent / "requirements.txt"
    )
    problems = []
    for name, wanted in re.findall(
        r"^([\w-]+)==(\S+)", requirements.read_text(), re.MULTILINE
    ):
        try:
            # 2.13.0+cpu counts as 2.13.0
            found = importlib.metadata.version(name).split("+")[0]
            if found != wanted:
                problems.append(
                    f"{name} is {found}, the stored outputs were made with {wanted}."
                )
        except importlib.metadata.PackageNotFoundError:
            problems.append(
                f"{name} is missing: run `python -m pip install {name}=={wanted}`."
            )
    memory = psutil.virtual_memory()
    free, total = memory.available / 2**30, memory.total / 2**30
    if free < 4:
        problems.append(
            f"Only {free:.1f} GiB of memory are free, 4 are wanted: close something."
        )
    python, threads = platform.python_version(), torch.get_num_threads()
    print(f"Python {python}, PyTorch {torch.__version__}, device {get_device()}")
    print(f"{free:.1f} of {total:.1f} GiB of memory free, {threads} threads")
    print("\n".join(problems) or "Nothing is missing.")
    return problems


def set_seed(seed: int = 123) -> None:
    """Seed Python's, NumPy's and PyTorch's random number generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_device() -> torch.device:
    """Return the fastest device that PyTorch can use here: a GPU, or else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device(
        "cpu"
    )


# Okabe-Ito colours, told apart by colour-blind readers, and a grey; one meaning each.
COLORS = {
    "tokens": "#0072B2", "weights": "#009E73", "attention": "#E69F00",
    "loss": "#D55E00", "grey": "#767676",
}  # fmt: skip


def use_course_style() -> None:
    """Give every figure of this session the look of the course's diagrams."""
    mpl.rcParams.update({
        "figure.figsize": (7.6, 3.6), "figure.dpi": 100, "figure.facecolor": "white",
        "axes.facecolor": "white", "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e5e5e5",
        "font.family": "sans-serif", "font.size": 11, "axes.titlesize": 12,
        "axes.prop_cycle": mpl.cycler(color=list(COLORS.values())),
        "image.cmap": "cividis",
    })  # fmt: skip


class BigramModel:
    """P(next id | current id), counted, with additive (Laplace) smoothing.

    Works on any integer ids, characters or tokens. Its table has V x V entries, 8 bytes
    each: 39 KB for 70 characters, 134 MB for a vocabulary of 4,096 tokens.

    >>> model = BigramModel().fit([0, 1, 0, 1, 0], vocab_size=2, alpha=0)
    >>> model.probabilities().tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """

    def fit(self, ids, vocab_size: int, alpha: float = 1.0) -> "BigramModel":
        """Count the neighbours in `ids` (N,) int; add `alpha` to each. Returns itself.

        Raises ValueError for fewer than two ids, an id outside 0 ... vocab_size - 1, or
        alpha < 0.
        """
        if not alpha >= 0:
            raise ValueError(f"alpha must be at least 0, got {alpha}")
        ids = self._checked(ids, vocab_size)
        pair_number = ids[:-1] * vocab_size + ids[1:]
        counts = torch.bincount(pair_number, minlength=vocab_size**2)
        self.counts = counts.view(vocab_size, vocab_size)  # (V, V)
        self.vocab_size, self.alpha = vocab_size, alpha
        return self

    def probabilities(self) -> torch.Tensor:
        """Return the table (V, V) float64; row i is the distribution of what follows i.

        With alpha = 0 the row of an id that was never followed by anything is all
        zeros.
        """
        smoothed = self.counts.to(torch.float64) + self.alpha
        return smoothed / smoothed.sum(dim=1, keepdim=True).clamp_min(1e-300)

    def cross_entropy(self, ids) -> float:
        """Return the mean of -log P(next | current) over `ids` (N,), in nats per id."""
        ids = self._checked(ids, self.vocab_size)
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
                raise ValueError(
                    f"id {ids[-1]} was never followed by anything; use alpha > 0"
                )
            ids.append(int(torch.searchsorted(row, number * row[-1], right=True)))
        return ids[1:]

    @staticmethod
    def _checked(ids, vocab_size: int) -> torch.Tensor:
        ids = torch.as_tensor(ids)
        if ids.ndim != 1 or len(ids) < 2 or ids.is_floating_point():
            raise ValueError(
                f"a row of 2 or more ids is needed, got {ids.dtype} {[*ids.shape]}"
            )
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise ValueError(
                f"ids {ids.min()} to {ids.max()} are outside 0 ... {vocab_size - 1}"
            )
        return ids.to(torch.int64)
