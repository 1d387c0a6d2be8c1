"""Kill pretrain.py twenty times at random moments, resume it, and compare the weights.

    python tests/benchmarks/bench_resume.py

Every second kill waits until a checkpoint is being written. The run that was killed
must end with the same weights, bit for bit, as one that was not.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).resolve().parents[2] / "ch05_pretraining" / "pretrain.py"
OPTIONS = (
    "--tales 60 --vocab-size 400 --context-length 24 --batch-size 4 --max-steps 400 "
    "--checkpoint-every 5"
)
KILLS = 20


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def main() -> None:
    chance, environment = random.Random(1), os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        first = [sys.executable, str(SCRIPT), *OPTIONS.split(), "--out"]
        quiet = {
            "env": environment,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }
        subprocess.run([*first, str(whole)], check=True, **quiet)
        during_write = finished = 0
        for kill in range(KILLS):
            resume = [sys.executable, str(SCRIPT), "--out", str(killed), "--resume"]
            started = (killed / "settings.json").exists()
            process = subprocess.Popen(
                resume if started else [*first, str(killed)], **quiet
            )
            log = killed / "log.jsonl"
            before = log.stat().st_mtime if log.exists() else 0
            wait_for_write, pause = kill % 2 == 1, chance.random() * 0.5
            while process.poll() is None:
                writing = list((killed / "checkpoints").glob(".*.new"))
                if wait_for_write and writing:
                    break
                if not wait_for_write and log.exists() and log.stat().st_mtime > before:
                    time.sleep(pause)
                    break
            during_write += bool(list((killed / "checkpoints").glob(".*.new")))
            finished += process.poll() is not None
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(
            [sys.executable, str(SCRIPT), "--out", str(killed), "--resume"], **quiet
        )
        a, b = weights(whole), weights(killed)
        same = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        steps = len((killed / "log.jsonl").read_text(encoding="utf-8").splitlines())
    print(
        f"{KILLS} kills, {during_write} of them with a checkpoint half written, "
        f"{finished} too late"
    )
    print(f"log lines: {steps}; same weights as without a kill: {same}")


if __name__ == "__main__":
    main()
