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

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from shared.pretraining import load_model
from shared.support import COURSE

pytestmark = pytest.mark.slow  # each test starts the program several times

SCRIPT = COURSE / "ch05_pretraining" / "pretrain.py"
SMALL = (
    "--tales 60 --vocab-size 400 --context-length 24 --batch-size 4 "
    "--log-every 1 --eval-every 20 --adamw"
).split()
STEPS = 30
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
needs_signals = pytest.mark.skipif(
    os.name == "nt", reason="Windows has no signals that a program can send another"
)


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
    """A run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    options = ["--max-steps", STEPS, "--checkpoint-every", 3]
    run = pretrain(*SMALL, *options, "--out", out)
    assert run.returncode == 0, run.stderr
    return out


def test_a_run_leaves_model_log_and_the_last_checkpoints(whole_run):
    model, tokenizer = load_model(whole_run / "model")
    assert model.config.vocab_size == tokenizer.n_vocab == 400
    assert model.config.context_length == 24
    log = log_of(whole_run)
    assert sorted(log) == list(range(1, STEPS + 1))
    assert log[STEPS]["val_loss"] < log[1]["loss"]
    assert log[STEPS]["tokens"] == STEPS * 4 * 24
    assert [step for step in log if "val_loss" in log[step]] == [20, STEPS]
    names = sorted(path.name for path in (whole_run / "checkpoints").iterdir())
    assert names == ["step-00000027", "step-00000030"]
    settings = json.loads((whole_run / "settings.json").read_text(encoding="utf-8"))
    given = {"tales": 60, "vocab_size": 400, "context_length": 24, "max_steps": STEPS}
    assert settings.items() >= given.items() and settings["warmup_steps"] is None
    again = pretrain(*SMALL, "--out", whole_run)
    assert again.returncode == 2 and "holds a run already" in again.stderr


@needs_signals
def test_killed_three_times_and_resumed_ends_with_the_same_weights(whole_run, tmp_path):
    out, chance = tmp_path / "run", random.Random(5)
    command = [sys.executable, str(SCRIPT), "--out", str(out)]
    options = ["--max-steps", str(STEPS), "--checkpoint-every", "3"]
    first = [*command, *SMALL, *options]
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


TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_give_the_same_curve_as_one(whole_run, tmp_path, accumulate):
    options = ["--max-steps", STEPS, "--accumulate", accumulate, "--keep", 1]
    launcher = (*TORCHRUN, "--nproc-per-node=2", "--standalone")
    run = pretrain(*SMALL, *options, "--out", tmp_path / "two", launcher=launcher)
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
                *TORCHRUN, "--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}",
                "--master-addr=127.0.0.1", f"--master-port={port}", str(SCRIPT),
                *SMALL, "--max-steps", "6", "--out", str(tmp_path / "shared-folder"),
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


@needs_signals
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    options = ["--max-steps", "100000", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *SMALL, *options],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    log = out / "log.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if log.exists() and log.read_text(encoding="utf-8").count("\n") > 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "--resume" in printed
    (checkpoint,) = (out / "checkpoints").iterdir()
    stored = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))
    assert stored["step"] == max(log_of(out))
    assert (out / "model" / "model.safetensors").exists()


def test_bad_input_is_named(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.touch()
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time.")
    foreign = tmp_path / "foreign.txt"
    beginning = "Grüße, ".encode() * 200_000
    foreign.write_bytes(beginning + b"\xff\xfe" + b"more")
    at = rf"foreign.txt is not UTF-8.*\b{len(beginning)}\b"
    divided = ["--batch-size", 3, "--accumulate", 2]
    zeros = ["--log-every", 0]
    cases = [
        (["--text", empty], "too little text"),
        (["--text", short], "too little text"),
        (["--text", foreign], at),
        (["--text", tmp_path / "missing.txt"], "missing.txt"),
        ([], "either --text or --tales"),
        (["--tales", 50, *divided], "--batch-size 3 is not divisible by 2"),
        (["--tales", 50, "--learning-rate", 5], "out of range.*learning_rate=5.0"),
        (["--tales", 0, *zeros], "at least 1: --tales, --log-every"),
    ]
    options = ["--vocab-size", 300, "--context-length", 24, "--max-steps", 2]
    for n, (arguments, message) in enumerate(cases):
        run = pretrain(*arguments, *options, "--out", tmp_path / f"run{n}")
        assert run.returncode != 0 and "Traceback" not in run.stderr, run.stderr
        assert re.search(message, run.stderr), (message, run.stderr)
    nothing = pretrain("--out", tmp_path / "none", "--resume")
    assert nothing.returncode == 2 and "nothing to resume" in nothing.stderr


def test_your_own_text_in_several_files(tmp_path):
    story = (COURSE / "ch01_intro" / "story.txt").read_text(encoding="utf-8")
    half = len(story) // 2
    for name, part in (("a", story[:half]), ("b", story[half:])):
        (tmp_path / f"{name}.txt").write_text(part, encoding="utf-8")
    texts = ["--text", tmp_path / "a.txt", tmp_path / "b.txt"]
    options = ["--vocab-size", 300, "--context-length", 24, "--max-steps", 1]
    wrong = pretrain(*texts, *options, "--accumulate", 3, "--out", tmp_path / "run")
    mended = pretrain(*texts, *options, "--accumulate", 2, "--out", tmp_path / "run")
    assert (wrong.returncode, mended.returncode) == (2, 0), mended.stderr
    _, tokenizer = load_model(tmp_path / "run" / "model")
    ids = np.fromfile(tmp_path / "run" / "data" / "all.bin", dtype=np.uint16)
    ends = [tokenizer.eot_token]
    expected = tokenizer.encode(story[:half]) + ends + tokenizer.encode(story[half:])
    assert ids.tolist() == expected + ends


def test_a_resumed_run_takes_more_steps_but_no_other_settings(tmp_path):
    out = tmp_path / "run"
    assert pretrain(*SMALL, "--max-steps", 4, "--out", out).returncode == 0
    other = pretrain("--out", out, "--resume", "--context-length", 12, "--seed", 123)
    assert other.returncode == 2 and "leave out --context-length\n" in other.stderr
    more = pretrain("--out", out, "--resume", "--max-steps", 6)
    assert more.returncode == 0 and "from step 4" in more.stdout, more.stderr
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    out = tmp_path / "run"
    options = ["--max-steps", 8, "--checkpoint-every", 3, "--keep", 9]
    run = pretrain(*SMALL, *options, "--out", out)
    assert run.returncode == 0, run.stderr
    last, newest = sorted((out / "checkpoints").iterdir())[-2:]
    assert (last.name, newest.name) == ("step-00000006", "step-00000008")
    file = newest / "training.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    weights = load_file(out / "model" / "model.safetensors")
    again = pretrain("--out", out, "--resume")
    assert again.returncode == 0, again.stderr
    assert "is damaged" in again.stderr and "from step 6" in again.stdout
    after = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(weights[name], after[name]) for name in weights)
