"""What every notebook needs: seeds, a device, one look for its pictures."""

import importlib.metadata
import os
import platform
import random
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import psutil
import torch
from cycler import cycler
from matplotlib.backends import BackendFilter, backend_registry

from shared.support import COURSE

# Okabe-Ito colours, which stay apart for colour-blind readers, and a grey; one meaning
# each.
COLORS = {
    "tokens": "#0072B2", "weights": "#009E73", "attention": "#E69F00",
    "loss": "#D55E00", "grey": "#767676",
}  # fmt: skip


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
    mpl.rcParams.update({
        "figure.figsize": (7.6, 3.6), "figure.dpi": 100, "figure.facecolor": "white",
        "axes.facecolor": "white", "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e5e5e5",
        "axes.titlesize": 12, "axes.prop_cycle": cycler(color=list(COLORS.values())),
        "font.family": "sans-serif", "font.size": 11, "image.cmap": "cividis",
    })  # fmt: skip


def check_environment(requirements: Path | None = None) -> list[str]:
    """Print what this machine offers the course; return what is missing, in sentences.

    Compares the installed packages with the pins in `requirements` (by default the
    course's own requirements.txt) and looks at the free memory. An empty list means:
    ready.
    """
    pins = (requirements or COURSE / "requirements.txt").read_text(encoding="utf-8")
    problems = []
    for name, wanted in re.findall(r"^([\w-]+)==(\S+)", pins, re.MULTILINE):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            advice = f"run `python -m pip install {name}=={wanted}`"
            problems.append(f"{name} is missing: {advice}.")
            continue
        if found.split("+")[0] != wanted:  # 2.13.0+cpu counts as 2.13.0
            problems.append(
                f"{name} is {found}, the stored outputs were made with {wanted}."
            )
    memory = psutil.virtual_memory()
    free, total = memory.available / 2**30, memory.total / 2**30
    if free < 4:
        problems.append(
            f"Only {free:.1f} GiB of memory are free, 4 are wanted: close something."
        )
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    print(f"{versions}, device {get_device()}")
    threads = torch.get_num_threads()
    print(f"{free:.1f} of {total:.1f} GiB of memory free, {threads} threads")
    print("\n".join(problems) or "Nothing is missing.")
    return problems
