"""Chapter 7's chat.py: a conversation in the terminal, and what cannot be loaded."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import CHAT_LLAMA, TOKENIZER, build, shaken

from shared.lora import (
    apply_lora,
    load_adapter,
    lora_layers,
    merge_lora,
    save_adapter,
)
from shared.pretrained_weights import Conversation
from shared.pretraining import save_model
from shared.quantization import QuantizedLinear, quantize
from shared.support import COURSE
from shared.text_data import END_OF_TEXT
from shared.tokenizer import BPETokenizer

PROGRAM = COURSE / "ch07_instruction" / "chat.py"
sys.path.append(str(PROGRAM.parent))
chat = importlib.import_module("chat")


def model():
    return shaken(build(CHAT_LLAMA))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Folders of a model and of an adapter for it that changes its answers."""
    top = tmp_path_factory.mktemp("chat")
    save_model(model(), top / "model", TOKENIZER)
    tuned = apply_lora(model(), rank=4)
    with torch.no_grad():
        for layer in lora_layers(tuned).values():
            layer.B.normal_()
    save_adapter(tuned, top / "adapter")
    return {name: str(top / name) for name in ("model", "adapter")}


def type_in(monkeypatch, *messages: str) -> None:
    """Let input() return these messages, then the end of the file."""
    left = iter(messages)

    def typed(prompt: str) -> str:
        print(prompt, end="")
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)


def answer(tuned: torch.nn.Module, *messages: str) -> list[str]:
    talk = Conversation(tuned, TOKENIZER)
    return ["".join(talk.reply(text)) for text in messages]


@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_conversation(folders, monkeypatch, capsys, with_adapter):
    expected = model()
    arguments = ["--model", folders["model"]]
    if with_adapter:
        arguments += ["--adapter", folders["adapter"]]
        load_adapter(expected, folders["adapter"])
    type_in(monkeypatch, "a prize", " you? ", "")
    assert chat.main(arguments) == 0
    first, second = answer(expected, "a prize", "you?")
    _, _, shown = capsys.readouterr().out.partition("\n")
    assert shown == f"you:   model: {first}\nyou:   model: {second}\nyou:   "


def test_the_adapter_of_these_tests_matters(folders):
    tuned = load_adapter(model(), folders["adapter"])
    assert answer(tuned, "a prize") != answer(model(), "a prize")


def test_a_conversation_in_eight_bits(folders, monkeypatch, capsys):
    expected = quantize(merge_lora(load_adapter(model(), folders["adapter"])))
    begun = []
    monkeypatch.setattr(chat, "talk", lambda talking, _: begun.append(talking))
    arguments = ["--model", folders["model"], "--adapter", folders["adapter"]]
    assert chat.main([*arguments, "--eight-bits"]) == 0
    assert isinstance(begun[0].model.out_head, QuantizedLinear)
    assert ["".join(begun[0].reply("a prize"))] == answer(expected, "a prize")


def test_each_piece_is_shown_at_once(folders, monkeypatch, capsys):
    shown = []

    def reply(self, text: str, **sampling) -> Iterator[str]:
        for piece in ("one", " two", " three"):
            yield piece
            shown.append(capsys.readouterr().out)

    monkeypatch.setattr(chat.Conversation, "reply", reply)
    type_in(monkeypatch, "hello")
    assert chat.main(["--model", folders["model"]]) == 0
    assert shown[0].endswith("model: one") and shown[1:] == [" two", " three"]


def test_the_temperature_is_handed_on(folders, monkeypatch):
    asked = []

    def reply(self, text: str, **sampling) -> Iterator[str]:
        asked.append(sampling)
        yield "so"

    monkeypatch.setattr(chat.Conversation, "reply", reply)
    for arguments in ([], ["--temperature", "0.7"]):
        type_in(monkeypatch, "hello", "")
        assert chat.main(["--model", folders["model"], *arguments]) == 0
    assert asked == [{"temperature": 0.0}, {"temperature": 0.7}]


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "warm"])
def test_a_temperature_that_is_none(capsys, value):
    with pytest.raises(SystemExit) as stopped:
        chat.main(["--temperature", value])
    assert stopped.value.code == 2 and "--temperature" in capsys.readouterr().err


def test_ctrl_c_ends_the_conversation(folders, monkeypatch, capsys):
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert chat.main(["--model", folders["model"]]) == 0
    assert capsys.readouterr().err == ""


# --- what cannot be loaded ------------------------------------------------------------


def damaged(folder: Path, how: str) -> Path:
    """Return a copy of an adapter's folder with something wrong in it."""
    bad = folder.parent / how.replace(" ", "_")
    tuned = apply_lora(model(), rank=4)
    save_adapter(tuned, bad)
    settings = bad / "settings.json"
    tensors = bad / "trained.safetensors"
    stored = json.loads(settings.read_text("utf-8"))
    if how == "no settings":
        settings.unlink()
    elif how == "settings that are no JSON":
        settings.write_text("{", "utf-8")
    elif how == "settings of another kind":
        settings.write_text("[1, 2]", "utf-8")
    elif how == "a setting is missing":
        del stored["alpha"]
        settings.write_text(json.dumps(stored), "utf-8")
    elif how == "a setting of another type":
        settings.write_text(json.dumps(stored | {"rank": "four"}), "utf-8")
    elif how == "no tensors":
        tensors.unlink()
    elif how == "half of the tensors":
        tensors.write_bytes(tensors.read_bytes()[: tensors.stat().st_size // 2])
    elif how == "another model's":
        save_adapter(apply_lora(shaken(build()), rank=4), bad)
    return bad


@pytest.mark.parametrize(
    "how",
    [
        "no settings",
        "settings that are no JSON",
        "settings of another kind",
        "a setting is missing",
        "a setting of another type",
        "no tensors",
        "half of the tensors",
        "another model's",
    ],
)
def test_damaged_adapters_are_one_sentence(folders, capsys, how):
    bad = damaged(Path(folders["adapter"]), how)
    arguments = ["--model", folders["model"], "--adapter", str(bad)]
    assert chat.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {bad}") and err.count("\n") == 1


def test_a_model_that_holds_no_conversations(tmp_path, capsys):
    plain = BPETokenizer.train("is it true? yes, it is true", 270, [END_OF_TEXT])
    save_model(model(), tmp_path / "model", plain)
    assert chat.main(["--model", str(tmp_path / "model")]) == 1
    assert "no chat model" in capsys.readouterr().err


def run(*arguments: str, typed: str = "", folder: Path) -> subprocess.CompletedProcess:
    """Run the program in another working directory, as from a terminal."""
    command = [sys.executable, str(PROGRAM), *arguments]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, input=typed.encode(), capture_output=True, env=environment, cwd=folder
    )


def test_the_program_runs_from_any_folder(folders, tmp_path):
    arguments = ("--model", folders["model"], "--adapter", folders["adapter"])
    done = run(*arguments, typed="hello\n\n", folder=tmp_path)
    assert done.returncode == 0 and done.stderr == b""
    assert done.stdout.startswith(b"Type a message")
    assert done.stdout.count(b"you:   ") == 2 and done.stdout.count(b"model: ") == 1


@pytest.mark.parametrize("given", ["--model", "--adapter"])
def test_what_is_unknown_is_one_sentence_and_exit_status_1(folders, tmp_path, given):
    arguments = {"--model": folders["model"]} | {given: "gpt5"}
    parts = [part for pair in arguments.items() for part in pair]
    done = run(*parts, folder=tmp_path)
    assert done.returncode == 1 and done.stdout == b""
    assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1
    assert b"gpt5" in done.stderr and b"Traceback" not in done.stderr
