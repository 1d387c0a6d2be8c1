"""What every notebook needs: seeds, a device, one look for its pictures."""

import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib import style
from matplotlib.backends import BackendFilter, backend_registry

# Okabe-Ito colours, which stay apart for colour-blind readers, and a grey; one meaning
# each.
COLORS = {"tokens": "#0072B2", "weights": "#009E73", "attention": "#E69F00"}
COLORS |= {"loss": "#D55E00", "grey": "#767676"}


def set_seed(seed: int = 123) -> None:
    """Seed Python's, NumPy's and PyTorch's random number generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_device() -> torch.device:
    """Return the fastest device that PyTorch can use: a GPU, or else the CPU.

    The environment variable LLM_COURSE_DEVICE (cpu, cuda, mps) decides, if it is set.
    """
    if name := os.environ.get("LLM_COURSE_DEVICE"):
        return torch.device(name)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def use_course_style() -> None:
    """Give every matplotlib figure of this session the course's look.

    In a notebook, figures are shown in it, even if MPLBACKEND names a backend that only
    writes files, as is usual on servers.
    """
    ipython: Any = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    backend = str(mpl.get_backend(auto_select=False)).lower()
    writers = backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)
    if hasattr(shell, "kernel") and backend in writers:
        shell.run_line_magic("matplotlib", "inline")
    style.use(Path(__file__).with_name("course.mplstyle"))


def show(
    values: Any,
    decimals: int = 2,
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Print numbers rounded, in the same way on every CPU, perhaps with names.

    A tensor (or what torch.as_tensor takes) of any shape; one or two dimensions where
    `rows` or `columns` name the entries. Truth values are printed as 1 and 0. Raises
    ValueError for an entry so near the middle between two roundings (2 % of the last
    digit) that another CPU could round it otherwise: choose other decimals or numbers.

    >>> show(torch.tensor([0.25, 2 / 3]), 1, columns=["Ivy", "clock"])
    Traceback (most recent call last):
    ValueError: entry [0] is 0.25, which rounds up or down with 1 decimals
    >>> show(torch.tensor([0.25, 2 / 3]), columns=["Ivy", "clock"])
     Ivy  clock
    0.25   0.67
    """
    tensor = torch.as_tensor(values).detach().cpu()
    tensor = tensor.double() if tensor.is_floating_point() else tensor.long()
    form = "{}".format
    if tensor.is_floating_point():
        scaled = tensor * 10**decimals
        close = (scaled - scaled.floor() - 0.5).abs() < 0.02
        for index in close.nonzero().tolist():
            value = tensor[tuple(index)].item()
            rule = f"which rounds up or down with {decimals} decimals"
            raise ValueError(f"entry {index} is {value:.{decimals + 4}g}, {rule}")
        tensor = scaled.round() / 10**decimals + 0.0  # + 0.0 makes -0.0 to 0.0
        form = f"{{:.{decimals}f}}".format
    if rows is None and columns is None:
        width = max([0, *(len(form(value)) for value in tensor.flatten().tolist())])
        aligned: Any = {"all": lambda value: f"{form(value):>{width}}"}
        print(np.array2string(tensor.numpy(), 88, formatter=aligned, threshold=10**4))
        return
    table = pd.DataFrame(tensor.view(-1, tensor.shape[-1]).numpy())
    if tensor.dim() == 1 and columns is None:
        table = table.T
    table.index = list(rows or [""] * len(table))
    table.columns = list(columns or [""] * table.shape[1])
    print(table.to_string(header=bool(columns), index=bool(rows), float_format=form))
