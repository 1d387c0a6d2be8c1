"""Kill pretrain.py in one phase of its work, for its test and its benchmark."""

import os
import subprocess
import sys
import time
from pathlib import Path

from shared.support import COURSE

SCRIPT = COURSE / "ch05_pretraining" / "pretrain.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
PHASES = {  # and what lies in the folder of a run while it lasts
    "tokenising": ".data.new",
    "training": "log.jsonl",
    "checkpointing": "checkpoints/.step-*.new",
    "final save": ".model.new",
}


def size_of(path: Path) -> int:
    """Return the size of a file, 0 without one."""
    return path.stat().st_size if path.exists() else 0


def next_command(out: Path, first: list[str]) -> list[str]:
    """Return the command that goes on: with --resume, once settings are kept."""
    started = (out / "settings.json").exists()
    return ["--out", str(out), "--resume"] if started else first


def kill_in(phase: str, arguments: list[str], out: Path, pause: float) -> bool:
    """Start pretrain.py, and kill it `pause` seconds after the phase has begun.

    Return whether it was in that phase still.
    """
    command = [sys.executable, str(SCRIPT), *arguments]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=ENVIRONMENT, **quiet)
    log, size, begun = out / "log.jsonl", size_of(out / "log.jsonl"), False
    deadline = time.monotonic() + 120
    while process.poll() is None and not begun and time.monotonic() < deadline:
        time.sleep(0.001)
        if phase == "training":
            before, size = size, size_of(log)  # a run cuts its log when it starts
            begun = size > before
        else:
            begun = any(out.glob(PHASES[phase]))
    time.sleep(pause)
    within = process.poll() is None and any(out.glob(PHASES[phase]))
    process.kill()
    process.wait()
    return within
