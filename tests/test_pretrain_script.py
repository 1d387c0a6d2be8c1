"""Chapter 5's pretrain.py as a program: resuming, several processes, bad input."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from killing import ENVIRONMENT, PHASES, SCRIPT, kill_in, next_command
from safetensors.torch import load_file

from shared.pretraining import load_model
from shared.support import COURSE, files
from shared.text_data import END_OF_TEXT
from shared.tokenizer import BPETokenizer

sys.path.append(str(SCRIPT.parent))
import corpus
import pretrain as program
from checkpoints import locked

pytestmark = pytest.mark.slow  # most tests start the program, several times

SMALL = (
    "--tales 60 --vocab-size 400 --context-length 24 --batch-size 4 "
    "--log-every 1 --eval-every 20 --adamw"
).split()
STEPS = 30
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


def test_killed_in_every_phase_it_ends_with_the_same_weights(whole_run, tmp_path):
    out, chance = tmp_path / "run", random.Random(5)
    first = [*SMALL, "--max-steps", str(STEPS), "--checkpoint-every", "3"]
    first += ["--out", str(out)]
    for phase in PHASES:
        kill_in(phase, next_command(out, first), out, chance.random() * 0.05)
    end = pretrain(*next_command(out, first))
    assert end.returncode == 0, end.stderr
    expected = load_file(whole_run / "model" / "model.safetensors")
    weights = load_file(out / "model" / "model.safetensors")
    assert expected.keys() == weights.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert sorted(log_of(out)) == list(range(1, STEPS + 1))


class Ended(NamedTuple):
    """How a run in this process ended, and what it has printed."""

    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys) -> Iterator[Callable[..., Ended]]:
    """The program, run in this process, for two steps unless told otherwise."""

    def run_here(*arguments) -> Ended:
        given = list(map(str, arguments))
        if "--resume" not in given and "--max-steps" not in given:
            given += ["--max-steps", "2"]
        try:
            status = program.main(given)
        except SystemExit as end:
            status = int(end.code or 0)
        return Ended(status, *capsys.readouterr())

    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield run_here
    for number, handler in handlers.items():
        signal.signal(number, handler)


STORY = (COURSE / "ch01_intro" / "story.txt").read_text(encoding="utf-8")
TINY = "--vocab-size 300 --context-length 24 --batch-size 2 --log-every 1".split()


@pytest.fixture
def story(tmp_path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(STORY, encoding="utf-8")
    return path


def ids_of(out: Path) -> list[int]:
    return np.fromfile(out / "data" / "all.bin", dtype=np.uint16).tolist()


# --- data -----------------------------------------------------------------------------


def of_story(path: Path, **changes) -> corpus.Corpus:
    facts = {"tales": 0, "seed": 1, "vocab_size": 300} | changes
    return corpus.Corpus([str(path)], corpus.hashes([str(path)]), **facts)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "change", ["same size", "longer", "vocabulary", "ids", "tokenizer", "facts"]
)
def test_data_are_made_anew_where_anything_differs(change, story, tmp_path):
    data, vocab_size = tmp_path / "data", 300
    corpus.prepare_data(of_story(story), data)
    damaged = {"ids": "all.bin", "tokenizer": "tokenizer.json", "facts": "data.json"}
    if change == "same size":
        story.write_text(STORY.replace("the", "The"), encoding="utf-8")
    elif change == "longer":
        story.write_text(STORY + "Again.\n", encoding="utf-8")
    elif change == "vocabulary":
        vocab_size = 310
    else:
        file = data / damaged[change]
        file.write_bytes(file.read_bytes()[:-2])
    for folder in (data, tmp_path / "fresh"):
        corpus.prepare_data(of_story(story, vocab_size=vocab_size), folder)
    assert contents(data) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("same", ["nothing", "name", "seed"])
def test_data_are_kept_where_nothing_that_matters_differs(same, story, tmp_path):
    corpus.prepare_data(of_story(story), tmp_path / "data")
    made = (tmp_path / "data").stat().st_ino
    if same == "name":
        story = story.rename(tmp_path / "other.txt")
    corpus.prepare_data(of_story(story, seed=1 + (same == "seed")), tmp_path / "data")
    assert (tmp_path / "data").stat().st_ino == made


def test_data_of_another_version_are_refused(story, tmp_path):
    corpus.prepare_data(of_story(story), tmp_path / "data")
    path = tmp_path / "data" / "data.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["source"]["format"] = corpus.FORMAT - 1
    path.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(ValueError, match="made by another version"):
        corpus.prepare_data(of_story(story), tmp_path / "data")


@pytest.mark.parametrize("part", ["tokenizer", "first ids", "last ids"])
def test_killed_while_another_text_is_tokenised(part, story, tmp_path, monkeypatch):
    other = tmp_path / "other.txt"
    other.write_text(STORY.upper(), encoding="utf-8")
    data = tmp_path / "data"
    corpus.prepare_data(of_story(story), data)
    before = contents(data)

    def killed(folder: Path, write: Callable[[Path], None]) -> None:
        new = folder.with_name(".data.new")  # as a killed program leaves it
        new.mkdir()
        write(new)
        (new / "data.json").unlink()
        if part == "tokenizer":
            (new / "all.bin").unlink()
        elif part == "first ids":
            (new / "all.bin").write_bytes(b"12")

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_folder", killed)
        corpus.prepare_data(of_story(other), data)
    corpus.prepare_data(of_story(story), data)
    assert contents(data) == before
    corpus.prepare_data(of_story(other), data)
    assert contents(data) != before and not (tmp_path / ".data.new").exists()


def test_another_context_takes_the_same_ids(run, story, tmp_path):
    start = ["--text", story, *TINY, "--out", tmp_path / "run"]
    long = run(*start, "--context-length", 4000)
    assert long.status == 1 and "too little text" in long.err
    made = (tmp_path / "run" / "data").stat().st_ino
    for context in (12, 30):
        shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)
        assert run(*start, "--context-length", context).status == 0
    assert (tmp_path / "run" / "data").stat().st_ino == made


@pytest.mark.parametrize("name", ["BOM", "CRLF", "CR", "BOM and CRLF"])
def test_one_text_is_one_text_however_a_system_writes_it(name, story, tmp_path):
    plain = STORY[:3000] + f"\n{END_OF_TEXT}\n" + STORY[3000:]
    story.write_text(plain, encoding="utf-8", newline="")
    other = plain.replace("\n", "\r\n") if "CRLF" in name else plain
    other = other.replace("\n", "\r") if name == "CR" else other
    (tmp_path / "other.txt").write_text(
        other, encoding="utf-8-sig" if "BOM" in name else "utf-8", newline=""
    )
    for n, path in enumerate((story, tmp_path / "other.txt")):
        corpus.prepare_data(of_story(path), tmp_path / str(n))
    for file in ("all.bin", "tokenizer.json"):
        assert (tmp_path / "0" / file).read_bytes() == (
            tmp_path / "1" / file
        ).read_bytes()


@pytest.mark.parametrize(
    ("text", "expected", "found", "within"),
    [
        ("a b\n<E>\nc d\n", ["a b\n", "c d\n"], 1, 0),
        ("a\n<E>\n\nb\n<E>\nc\n<E>\n", ["a\n", "\nb\n", "c\n"], 3, 0),
        ("<E>\na\n<E>\n<E>\nb\n<E>", ["a\n", "b\n"], 4, 0),
        ("a <E> b\n<E>\nc\n <E>\n", ["a <E> b\n", "c\n <E>\n"], 1, 2),
        ("a\r\n<E>\r\nb", ["a\n", "b"], 1, 0),
    ],
)
def test_a_line_that_ends_a_text(text, expected, found, within, tmp_path, capsys):
    path = tmp_path / "stories.txt"
    path.write_text(text.replace("<E>", END_OF_TEXT), encoding="utf-8", newline="")
    corpus.prepare_data(of_story(path, vocab_size=259), tmp_path / "data")
    printed = capsys.readouterr().out
    assert f"{END_OF_TEXT} found: {found}\n" in printed
    assert (f"{within} more stand within a line" in printed) == (within > 0)
    tokenizer = BPETokenizer.load(tmp_path / "data" / "tokenizer.json")
    ids = []
    for document in expected:
        ids += tokenizer.encode_ordinary(document.replace("<E>", END_OF_TEXT))
        ids.append(tokenizer.eot_token)
    assert ids_of(tmp_path) == ids


@pytest.mark.parametrize("end", ["zyx zyx zyx ", "Ωμέγα ", "123 456 "])
def test_the_tokenizer_does_not_learn_from_the_validation_part(end, story, tmp_path):
    training = STORY[: len(STORY) // 2]
    for n, validation in enumerate((STORY[:5000], (end * 5000)[:5000])):
        story.write_text(training + validation, encoding="utf-8")
        corpus.prepare_data(of_story(story), tmp_path / str(n))
    made = [(tmp_path / str(n) / "tokenizer.json").read_bytes() for n in range(2)]
    assert made[0] == made[1]
    tokenizer = BPETokenizer.load(tmp_path / "0" / "tokenizer.json")
    facts = json.loads((tmp_path / "0" / "data.json").read_text(encoding="utf-8"))
    assert tokenizer.encode_ordinary(training) == (
        np.fromfile(tmp_path / "0" / "all.bin", np.uint16)[: facts["train"]].tolist()
    )


@pytest.mark.parametrize("name", ["more/*.txt", "more/[ab].txt", "**/?.txt"])
def test_a_pattern_that_the_shell_has_left(name, tmp_path, monkeypatch):
    (tmp_path / "more").mkdir()
    for file in ("b.txt", "a.txt", "no.csv"):
        (tmp_path / "more" / file).write_text("Once")
    monkeypatch.chdir(tmp_path)
    wanted = [str(tmp_path / "more" / file) for file in ("a.txt", "b.txt")]
    assert program.text_files([name]) == wanted


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path):
    (tmp_path / "a[1].txt").write_text("Once")
    assert program.text_files([str(tmp_path / "a[1].txt")])
    for name, message in (("*.csv", "no such file"), ("", "is a folder: give .*txt")):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            program.text_files([str(tmp_path / name)])


# --- a folder of a run ----------------------------------------------------------------


def test_two_programs_in_one_folder(run, story, tmp_path):
    out = tmp_path / "run"
    start = ["--text", story, *TINY, "--out", out]
    with locked(out):
        second = run(*start)
    assert second.status == 1 and "another program works in" in second.err
    assert os.listdir(out) == [".lock"]
    assert run(*start).status == 0


def test_resume_may_stand_behind_the_first_command(run, story, tmp_path):
    start = ["--text", story, *TINY, "--max-steps", 2, "--out", tmp_path / "run"]
    for first_step in (0, 2):
        again = run(*start, "--resume")
        assert again.status == 0 and f"from step {first_step}" in again.out
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert "from step 0" in run(*start, "--resume").out


def test_ctrl_c_while_tokenising(run, story, tmp_path, monkeypatch):
    start = ["--text", story, *TINY, "--out", tmp_path / "run"]

    def interrupted(*_):
        raise KeyboardInterrupt

    for name in ("make_tokenizer", "token_ids", "documents"):
        with monkeypatch.context() as patched:
            patched.setattr(corpus.Corpus, name, interrupted)
            stopped = run(*start)
        assert stopped.status == 130 and "--resume" in stopped.err
        assert not (tmp_path / "run" / "data").exists()
    assert run("--out", tmp_path / "run", "--resume").status == 0


def test_an_edited_text_is_told(run, story, tmp_path):
    start = ["--text", story, *TINY, "--out", tmp_path / "run"]
    assert run(*start).status == 0
    ids = ids_of(tmp_path / "run")
    story.write_text(STORY.replace("the", "The"), encoding="utf-8")
    resumed = run("--out", tmp_path / "run", "--resume", "--max-steps", 3)
    assert resumed.status == 0 and "keeps what it has read" in resumed.out
    assert ids_of(tmp_path / "run") == ids
    shutil.rmtree(tmp_path / "run" / "data")
    without = run("--out", tmp_path / "run", "--resume")
    assert without.status == 1 and "changed since the run began" in without.err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"tales": 3',
        '{"tales": 5.5}',
        '{"max_steps": true}',
        '{"x": 1}',
    ],
)
def test_damaged_settings_are_named(text, run, story, tmp_path):
    settings = tmp_path / "run" / "settings.json"
    assert run("--text", story, *TINY, "--out", tmp_path / "run").status == 0
    if text.startswith('{"') and text.endswith("}"):
        whole = json.loads(settings.read_text(encoding="utf-8"))
        text = json.dumps(whole | json.loads(text))
    settings.write_text(text, encoding="utf-8")
    ended = run("--out", tmp_path / "run", "--resume")
    assert ended.status == 1 and f"{settings} is damaged" in ended.err


@pytest.mark.parametrize("line", ["", "{", "null", "[1]", '{"step": "2"}', "\0\0\0"])
def test_a_damaged_line_of_the_log_is_left_out(line, run, story, tmp_path):
    out = tmp_path / "run"
    assert run("--text", story, *TINY, "--out", out).status == 0
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(line)
    assert run("--out", out, "--resume", "--max-steps", 3).status == 0
    assert sorted(log_of(out)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("20261129", ""), ("20261129235959999", ""), ("2026-11-29", "--seed: invalid"),
        ("0.5", "--seed: invalid"), ("-1", "at least 0: --seed"),
        (str(2**64), "at most .*: --seed"),
    ],
)  # fmt: skip
def test_a_date_or_a_fraction_as_a_seed(number, message, run, story, tmp_path):
    start = ["--text", story, *TINY, "--out", tmp_path / "run"]
    ended = run(*start, f"--seed={number}")
    assert (ended.status == 0) == (not message), ended.err
    assert re.search(message, ended.err)


@pytest.mark.parametrize("file", [".DS_Store", "Thumbs.db"])
def test_the_model_is_saved_beside_what_a_file_manager_leaves(
    file, run, story, tmp_path
):
    out = tmp_path / "run"
    assert run("--text", story, *TINY, "--out", out).status == 0
    (checkpoint,) = (out / "checkpoints").iterdir()
    for folder in (out / "model", checkpoint, out / "checkpoints", out / "data", out):
        (folder / file).touch()
    assert run("--out", out, "--resume", "--max-steps", 3).status == 0
    assert (out / "checkpoints" / file).exists()


def test_a_full_disk_is_told_and_the_run_goes_on_later(run, story, tmp_path):
    resource = pytest.importorskip("resource", reason="Windows limits no file sizes")
    out, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    start = ["--text", story, *TINY, "--out", out]
    for limit, told in ((900, ".data.new"), (500_000, "step-00000002")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            ended = run(*start)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert ended.status == 1 and told in ended.err and "too large" in ended.err
    assert run(*start, "--resume").status == 0


# --- several processes ----------------------------------------------------------------

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
    cut = len(story) - 5000  # the validation part begins
    expected = tokenizer.encode(story[:half]) + ends
    expected += tokenizer.encode(story[half:cut]) + tokenizer.encode(story[cut:])
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
    assert (out / "checkpoints" / "unusable-1-step-00000008").is_dir()
    after = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(weights[name], after[name]) for name in weights)
