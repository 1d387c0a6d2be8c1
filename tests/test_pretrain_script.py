"""Chapter 5's pretrain.py as a program: resuming, several processes, bad input."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shared.pretraining import load_model
from shared.text_data import BPETokenizer

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "ch05_pretraining" / "pretrain.py"
SMALL = (
    "--tales 60 --vocab-size 400 --context 24 --batch-size 4 "
    "--log-every 1 --eval-every 20"
).split()
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def pretrain(*arguments, launcher=(sys.executable,)) -> subprocess.CompletedProcess:
    command = [*launcher, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300
    )


def log_of(folder: Path) -> dict[int, dict]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["step"]: record for record in map(json.loads, lines)}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    """A run of 40 steps that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run = pretrain(*SMALL, "--steps", 40, "--checkpoint-every", 3, "--out", out)
    assert run.returncode == 0, run.stderr
    return out


def test_a_run_leaves_model_log_and_the_last_checkpoints(whole_run):
    model = load_model(whole_run / "model")
    tokenizer = BPETokenizer.load(whole_run / "model" / "tokenizer.json")
    assert (
        model.config.vocab_size == tokenizer.n_vocab == 400
        and model.config.context_length == 24
    )
    log = log_of(whole_run)
    assert sorted(log) == list(range(1, 41)) and log[40]["val_loss"] < log[1]["loss"]
    names = sorted(path.name for path in (whole_run / "checkpoints").iterdir())
    assert names == ["step-00000039", "step-00000040"]
    again = pretrain(*SMALL, "--out", whole_run)
    assert again.returncode == 2 and "holds a run already" in again.stderr


def test_killed_three_times_and_resumed_ends_with_the_same_weights(whole_run, tmp_path):
    out, chance = tmp_path / "run", random.Random(5)
    command = [sys.executable, str(SCRIPT), "--out", str(out)]
    first = [*command, *SMALL, "--steps", "40", "--checkpoint-every", "3"]
    for kill in range(3):
        resume = [*command, "--resume"] if (out / "settings.json").exists() else first
        process = subprocess.Popen(
            resume, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        started = time.monotonic()
        while process.poll() is None and time.monotonic() - started < 120:
            stored = list((out / "checkpoints").glob("*")) if out.exists() else []
            # At a random moment, often while one is written
            if len(stored) > min(kill, 1):
                time.sleep(chance.random() * 0.2)
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    end = pretrain("--out", out, "--resume")
    assert end.returncode == 0, end.stderr
    expected = load_file(whole_run / "model" / "model.safetensors")
    weights = load_file(out / "model" / "model.safetensors")
    assert expected.keys() == weights.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_two_processes_give_the_same_curve_as_one(whole_run, tmp_path):
    launcher = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
    )
    run = pretrain(
        *SMALL,
        "--steps",
        40,
        "--checkpoint-every",
        30,
        "--out",
        tmp_path / "two",
        launcher=launcher,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    one, two = log_of(whole_run), log_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for step, record in one.items():
        assert record["loss"] == pytest.approx(two[step]["loss"], abs=1e-3)
        assert record["tokens"] == two[step]["tokens"]


def test_two_machines_meet_at_a_rendezvous(whole_run, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2",
                "--nproc-per-node=1", f"--node-rank={node}", "--master-addr=127.0.0.1",
                f"--master-port={port}", str(SCRIPT), *SMALL, "--steps", "6",
                "--out", str(tmp_path / "shared-folder"),
            ],
            env=ENVIRONMENT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for node in range(2)
    ]  # fmt: skip
    output = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], output
    one, two = log_of(whole_run), log_of(tmp_path / "shared-folder")
    assert two[1]["loss"] == pytest.approx(one[1]["loss"], abs=1e-3)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    command = [
        sys.executable,
        str(SCRIPT),
        *SMALL,
        "--steps",
        "100000",
        "--out",
        str(out),
    ]
    process = subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        (out / "log.jsonl").exists()
        and (out / "log.jsonl").read_text(encoding="utf-8").count("\n") > 2
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "--resume" in printed
    (checkpoint,) = (out / "checkpoints").iterdir()
    stored = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))
    assert stored["step"] == max(log_of(out))


def test_bad_input_is_named(tmp_path):
    empty, short, foreign = (
        tmp_path / name for name in ("empty.txt", "short.txt", "foreign.txt")
    )
    empty.write_text("")
    short.write_text("Once upon a time.")
    foreign.write_bytes("Grüße, ".encode() * 200_000 + b"\xff\xfe" + b"more")
    size = len("Grüße, ".encode()) * 200_000
    options = ["--vocab-size", 300, "--context", 24, "--steps", 2]
    cases = [
        (["--text", empty], "too little text|no pre-tokens|empty"),
        (["--text", short], "too little text"),
        (["--text", foreign], f"foreign.txt is not UTF-8.*byte {size:,}"),
        (["--text", tmp_path / "missing.txt"], "missing.txt"),
        ([], "either --text or --tales"),
        (
            ["--tales", 50, "--batch-size", 3, "--accumulate", 2],
            "--batch-size 3 is not divisible by 2",
        ),
        (["--tales", 50, "--learning-rate", 5], "out of range: learning_rate = 5.0"),
        (["--tales", 0, "--log-every", 0], "at least 1: --tales, --log-every"),
    ]
    for n, (arguments, message) in enumerate(cases):
        run = pretrain(*arguments, *options, "--out", tmp_path / f"run{n}")
        assert run.returncode != 0 and "Traceback" not in run.stderr, run.stderr
        assert re.search(message, run.stderr), (message, run.stderr)
    wrong_first = pretrain(
        "--tales", 50, *options, "--accumulate", 3, "--out", tmp_path / "again"
    )
    mended = pretrain(
        "--tales", 50, *options, "--accumulate", 2, "--out", tmp_path / "again"
    )
    assert (wrong_first.returncode, mended.returncode) == (2, 0), mended.stderr
    nothing = pretrain("--out", tmp_path / "none", "--resume")
    assert nothing.returncode == 2 and "nothing to resume" in nothing.stderr


def test_a_resumed_run_takes_more_steps_but_no_other_settings(tmp_path):
    out = tmp_path / "run"
    assert pretrain(*SMALL, "--steps", 4, "--out", out).returncode == 0
    other = pretrain("--out", out, "--resume", "--context", 12, "--seed", 123)
    assert other.returncode == 2 and "leave out --context\n" in other.stderr
    more = pretrain("--out", out, "--resume", "--steps", 6)
    assert more.returncode == 0 and "from step 4" in more.stdout, more.stderr
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_passed_over(whole_run, tmp_path):
    out = tmp_path / "run"
    run = pretrain(
        *SMALL, "--steps", 8, "--checkpoint-every", 3, "--keep", 9, "--out", out
    )
    assert run.returncode == 0, run.stderr
    newest = sorted((out / "checkpoints").iterdir())[-1] / "training.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    weights = load_file(out / "model" / "model.safetensors")
    again = pretrain("--out", out, "--resume")
    assert (
        again.returncode == 0
        and "is damaged" in again.stderr
        and "from step 6" in again.stdout
    )
    after = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(weights[name], after[name]) for name in weights)
