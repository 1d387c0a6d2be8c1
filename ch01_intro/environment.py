"""Look whether this computer has what the course needs.

python ch01_intro/environment.py
"""

import importlib.metadata
import platform
import re
from pathlib import Path

import psutil
import torch

from shared.support import COURSE
from shared.support.course import get_device


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
            made = f"the stored outputs were made with {wanted}"
            problems.append(f"{name} is {found}, {made}.")
    memory = psutil.virtual_memory()
    free, total = memory.available / 2**30, memory.total / 2**30
    if free < 4:
        rule = "4 are wanted: close something"
        problems.append(f"Only {free:.1f} GiB of memory are free, {rule}.")
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    print(f"{versions}, device {get_device()}")
    threads = torch.get_num_threads()
    print(f"{free:.1f} of {total:.1f} GiB of memory free, {threads} threads")
    print("\n".join(problems) or "Nothing is missing.")
    return problems


if __name__ == "__main__":
    check_environment()
