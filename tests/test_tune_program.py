"""Chapter 7's tune.py, and the page that leads to it, .site/evening.md."""

import importlib
import json
import math
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from conftest import CHAT_LLAMA, TOKENIZER, build, shaken
from readme_command import readme_command

from shared.gpt_model import GPTConfig
from shared.pretrained_weights import open_gguf
from shared.pretraining import load_model, save_model
from shared.support import COURSE
from shared.support.tiny_tales import tales
from shared.text_data import END_OF_TEXT
from shared.tokenizer import BPETokenizer

sys.path += [str(COURSE / name) for name in ("ch05_pretraining", "ch07_instruction")]
chat = importlib.import_module("chat")
program = importlib.import_module("tune")

GPT = GPTConfig(TOKENIZER.n_vocab, 400, emb_dim=16, n_heads=2, n_layers=2)
ENTRIES = [{"turns": [f"is it {n}?", f"yes, it is {n}"]} for n in range(12)]


@pytest.fixture
def given(tmp_path) -> list[str]:
    """Options of a run that ends well, with folders that lie in tmp_path."""
    save_model(shaken(build(GPT)), tmp_path / "gpt", TOKENIZER)
    save_model(shaken(build(CHAT_LLAMA)), tmp_path / "llama", TOKENIZER)
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps(ENTRIES), encoding="utf-8")
    options = ["--conversations", questions, "--out", tmp_path / "out", "--steps", 8]
    return [*map(str, options), "--model", str(tmp_path / "gpt")]


def losses(printed: str) -> list[float]:
    """Return the losses before and after that the program has printed."""
    (line,) = re.findall(r"per token: (.*) before, (.*) after", printed)
    return [float(number) for number in line]


def test_all_weights_of_a_gpt_are_trained(given, tmp_path, capsys):
    assert program.main(given) == 0
    before, after = losses(capsys.readouterr().out)
    assert after < before
    old, new = (load_model(tmp_path / name)[0] for name in ("gpt", "out"))
    weights = zip(old.named_parameters(), new.parameters(), strict=True)
    assert not any(torch.equal(was, now) for (_, was), now in weights)
    assert chat.start(str(tmp_path / "out")).model.config == old.config


def test_a_llama_gets_an_adapter(given, tmp_path, capsys):
    llama = str(tmp_path / "llama")
    assert program.main([*given, "--model", llama]) == 0
    printed = capsys.readouterr().out
    before, after = losses(printed)
    assert after < before
    assert f"chat.py --model {llama} --adapter {tmp_path / 'out'}" in printed
    plain, tuned = (chat.start(llama, a) for a in (None, str(tmp_path / "out")))
    prompt = torch.tensor([TOKENIZER.encode("is it")])
    assert not plain.model(prompt).equal(tuned.model(prompt))


@pytest.mark.parametrize(
    ("splits", "learned", "held_out"),
    [
        ([None] * 21, [*range(9), *range(10, 19), 20], [9, 19]),
        ([None] * 3, [0, 1], [2]),
        (["validation", None, "train", "test", "validation"], [1, 2], [0, 4]),
        (["train", "test", "train"], [0], [2]),
    ],
)
def test_what_is_held_out(splits, learned, held_out, tmp_path):
    entries = [{"turns": [str(n), "x"]} for n in range(len(splits))]
    for entry, name in zip(entries, splits, strict=True):
        entry |= {"split": name} if name else {}
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    found = [[int(e["turns"][0]) for e in part] for part in program.load(path)]
    assert found == [learned, held_out]


def test_every_example_comes_before_one_comes_again():
    examples = [[[n], [n]] for n in range(10)]  # the last of three groups is short
    batches = program.training_batches(examples, 6, seed=1)
    seen = [sorted(n for b in batches[i : i + 3] for n in b[0][:, 0]) for i in (0, 3)]
    assert seen == [list(range(10))] * 2


LONG = [{"turns": ["Why? " * 100, "yes"]}]


@pytest.mark.parametrize(
    ("options", "entries", "message"),
    [
        ([], [], "questions.json holds no list of entries"),
        ([], ENTRIES[:1], "nothing to learn from"),
        ([], 2 * ENTRIES[:1], "nothing to learn from"),  # held out, and no copy of it
        ([], ENTRIES[:2] + LONG, "more than the context of 400"),
        ([], LONG + ENTRIES[:2], "more than the context of 400"),
        ([], [{"question": "?"}], "entry 0 has no turns"),
        (["--conversations", "no.json"], ENTRIES, "no.json is missing"),
        (["--steps", "0"], ENTRIES, "steps must be a whole number of at least 1"),
        (["--learning-rate", "5"], ENTRIES, "out of range"),
        (["--model", "gpt5"], ENTRIES, "no model gpt5"),
        (["--model", "FOLDER/plain"], ENTRIES, "no chat model"),
        (["--out", "FOLDER/gpt"], ENTRIES, "gpt exists already"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    options, entries, message, given, tmp_path, capsys
):
    plain = BPETokenizer.train("is it true? yes, it is true", 270, [END_OF_TEXT])
    save_model(shaken(build(GPT)), tmp_path / "plain", plain)
    (tmp_path / "questions.json").write_text(json.dumps(entries), encoding="utf-8")
    options = [option.replace("FOLDER", str(tmp_path)) for option in options]
    assert program.main([*given, *options]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ctrl_c_writes_nothing(given, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "tune", interrupted)
    assert program.main(given) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- the page -------------------------------------------------------------------------

PAGE = COURSE / ".site" / "evening.md"
SMALLER = {  # what the test adds to a command: sizes, and nothing else
    "train": "--vocab-size 600 --batch-size 2 --max-steps 30 --eval-every 10",
    "tune": "--steps 16",
}


def run(name: str) -> int:
    """Run one of the page's commands, smaller, in this process."""
    python, script, *options = shlex.split(readme_command(name, PAGE))
    assert python == ".venv/bin/python" and (COURSE / script).is_file()
    main = importlib.import_module(Path(script).stem).main
    return main([*options, *SMALLER.get(name, "").split()])


@pytest.mark.slow
def test_an_evening_from_files_to_a_chat(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # Ctrl-C stays pytest's
    stories = [tale.text for tale in tales(seed=1, n=200)]
    (tmp_path / "my_texts").mkdir()
    for name, some in (("a", stories[:120]), ("b", stories[120:])):
        text = f"\n{END_OF_TEXT}\n".join(some)
        (tmp_path / "my_texts" / f"{name}.txt").write_text(text, encoding="utf-8")
    shown = json.loads(readme_command("questions", PAGE))
    assert len(shown) == 3
    others = [{"turns": [f"Where is kite {n}?", "In the tree."]} for n in range(9)]
    Path("my_questions.json").write_text(json.dumps(shown + others), encoding="utf-8")

    assert run("train") == 0
    printed = capsys.readouterr().out
    first, _, last = map(float, re.findall(r"validation loss ([\d.]+)", printed))
    assert re.search(r"It writes:\n.*\w", printed)
    assert last < first < math.log(600)

    assert run("tune") == 0
    before, after = losses(capsys.readouterr().out)
    assert after < before

    typed = iter(["Who are you?", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    assert run("chat") == 0
    assert re.search(r"model: .*\w", capsys.readouterr().out)

    exec(readme_command("take", PAGE), {})
    with open_gguf("mine.gguf") as (settings, _):
        assert "<|im_start|>" in settings["tokenizer.chat_template"]


def options(name: str) -> list[str]:
    """Return the options of one of the page's commands."""
    return shlex.split(readme_command(name, PAGE))[2:]


def test_the_other_commands_fit_together():
    assert chat.parse(options("web")).model == chat.parse(options("chat")).model
    tuned = program.parse(options("smollm2"))
    settings = chat.parse(options("chat-smollm2"))
    assert settings.adapter == [str(tuned.out)] and settings.model == tuned.model
