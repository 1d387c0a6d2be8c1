"""Kill pretrain.py twenty times, five times in each phase of its work, and go on.

    python tests/benchmarks/bench_resume.py

A run is killed at a random moment while it tokenises, trains, writes a checkpoint and
writes the finished model, one after the other; each time the next command goes on: the
first one again, or --resume. After five such runs with other seeds, each must have the
same weights, bit for bit, as one that was not killed. Takes some minutes.
"""

import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).resolve().parents[1]))

from killing import ENVIRONMENT, PHASES, SCRIPT, kill_in, next_command

OPTIONS = (
    "--tales 400 --vocab-size 500 --context-length 24 --batch-size 2 --max-steps 24 "
    "--checkpoint-every 5 --log-every 1"
)
LONGEST = {  # seconds from the beginning of a phase to the kill
    "tokenising": 0.5,
    "training": 0.5,
    "checkpointing": 0.1,
    "final save": 0.02,
}


def finish(arguments: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def main() -> None:
    chance, within, same = random.Random(1), dict.fromkeys(PHASES, 0), 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(5):
            options = [*OPTIONS.split(), "--seed", str(seed)]
            whole, killed = (
                Path(folder) / f"whole{seed}",
                Path(folder) / f"killed{seed}",
            )
            finish([*options, "--out", str(whole)]).check_returncode()
            first = [*options, "--out", str(killed)]
            for n, phase in enumerate(PHASES):
                again = n == 1 and seed % 2 == 1  # the whole command once more
                command = first if again else next_command(killed, first)
                pause = chance.random() * LONGEST[phase]
                within[phase] += kill_in(phase, command, killed, pause)
            end = finish(next_command(killed, first))
            if end.returncode:
                print(end.stderr)
                continue
            a, b = weights(whole), weights(killed)
            same += a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
            print(f"seed {seed}: {same} the same; kills in their phase: {within}")
    for phase, n in within.items():
        print(f"{n} of 5 kills while {phase} lasted")
    print(f"{same} of 5 runs ended with the same weights as without a kill")


if __name__ == "__main__":
    main()
