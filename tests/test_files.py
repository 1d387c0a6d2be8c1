"""Files and folders that are written as a whole or not at all, and read with care."""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import GPT, LLAMA, TOKENIZER, build
from safetensors.torch import save_file
from torch import nn

from shared.pretraining import TrainConfig, Trainer, save_model
from shared.support import COURSE, read_json, sha256_of, write_whole
from shared.support.files import (
    read_tensors,
    read_trained,
    save_trained,
    set_weights,
    weights_of,
    write_folder,
)

sys.path.append(str(COURSE / "ch05_pretraining"))
from checkpoints import load_checkpoint, save_checkpoint
from to_transformers import save_for_transformers


def begins_with(path: Path, rest: str = "") -> str:
    """Return a pattern for a message that begins with a path."""
    return f"^{re.escape(str(path))}{rest}"


# --- one file -------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["Grüße\r\nund\nmehr", b"\x00\xff"])
def test_write_whole_replaces_a_file(data, tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    write_whole(path, data)
    assert path.read_bytes() == (data.encode("utf-8") if type(data) is str else data)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("breaks", ["write_bytes", "replace"])
def test_a_file_that_cannot_be_written_whole_stays_as_it_was(
    breaks, tmp_path, monkeypatch
):
    path = tmp_path / "file"
    path.write_text("before")
    real = Path.write_bytes

    def half_written(self, data):
        real(self, data[:3])
        raise OSError(28, "No space left on device")

    def fails(source, target):
        raise OSError("no more")

    if breaks == "replace":
        monkeypatch.setattr(os, "replace", fails)
    else:
        monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.raises(OSError, match="No space left|no more"):
        write_whole(path, "afterwards")
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_sha256(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match=begins_with(path)):
        sha256_of(path)
    path.write_bytes(b"abc" * 1_000_000)
    assert sha256_of(path) == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


def test_read_json(tmp_path):
    path = tmp_path / "some.json"
    with pytest.raises(FileNotFoundError, match=begins_with(path, " is missing")):
        read_json(path)
    path.write_bytes('\ufeff{"ü": [1, 2.5, null]}'.encode())
    assert read_json(str(path)) == {"ü": [1, 2.5, None]}
    for damaged in (b'{"a": ', b'{"a": "\xff"}', b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=begins_with(path, " is damaged")):
            read_json(path)


def test_read_tensors(tmp_path):
    path = tmp_path / "some.safetensors"
    with pytest.raises(FileNotFoundError, match=begins_with(path, " is missing")):
        read_tensors(path)
    save_file({"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.int64)}, path)
    found = read_tensors(path)
    assert found.keys() == {"a", "b"} and found["a"].tolist() == [0.0, 1.0, 2.0]
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", b"no tensors in here"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=begins_with(path, " is damaged")):
            read_tensors(path)


# --- a folder -------------------------------------------------------------------------


def test_write_folder_replaces_a_folder_and_removes_leftovers(tmp_path):
    (tmp_path / ".a.new").mkdir()
    (tmp_path / ".a.new" / "half").write_text("x")
    for text in ("first", "second"):
        write_folder(tmp_path / "a", lambda new, t=text: (new / "file").write_text(t))
        assert [p.name for p in sorted(tmp_path.rglob("*"))] == ["a", "file"]
        assert (tmp_path / "a" / "file").read_text() == text


def test_write_folder_makes_the_folders_above(tmp_path):
    write_folder(tmp_path / "b" / "a", lambda new: (new / "file").touch())
    assert (tmp_path / "b" / "a" / "file").exists()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with one file."""
    write_folder(tmp_path / "a", lambda new: (new / "file").write_text("first"))
    return tmp_path / "a"


def test_a_writer_that_fails_leaves_the_old_folder(folder):
    def fails(new: Path) -> None:
        (new / "file").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_folder(folder, fails)
    assert (folder / "file").read_text() == "first"
    assert os.listdir(folder.parent) == ["a"]


def test_a_failed_rename_brings_the_old_folder_back(folder, monkeypatch):
    real = Path.rename

    def fails_at_last(self, target):
        if self.name == ".a.new":
            raise OSError("no more")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", fails_at_last)
    with pytest.raises(OSError, match="no more"):
        write_folder(folder, lambda new: (new / "file").write_text("second"))
    assert (folder / "file").read_text() == "first"
    assert os.listdir(folder.parent) == ["a"]


def test_a_folder_lost_between_two_renames_comes_back(folder):
    folder.rename(folder.with_name(".a.old"))  # as a killed program leaves it
    with pytest.raises(ZeroDivisionError):
        write_folder(folder, lambda new: 1 / 0)
    assert (folder / "file").read_text() == "first"


def test_a_folder_with_other_files_is_left_alone(folder):
    (folder / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"other files \(thesis.txt\)"):
        write_folder(folder, lambda new: (new / "file").touch())
    assert sorted(os.listdir(folder)) == ["file", "thesis.txt"]
    assert (folder / "file").read_text() == "first"


@pytest.mark.parametrize(
    "name", [".DS_Store", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/a.json"]
)
def test_what_a_file_manager_leaves_is_no_other_file(name, folder):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    write_folder(folder, lambda new: (new / "file").write_text("second"))
    assert (folder / "file").read_text() == "second"


@pytest.mark.parametrize("name", [".notes", ".DS_Store.txt", "desktop", ".git/config"])
def test_another_dot_file_is_another_file(name, folder):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    with pytest.raises(ValueError, match="other files.*move them away"):
        write_folder(folder, lambda new: (new / "file").write_text("second"))
    assert (folder / name).exists() and (folder / "file").read_text() == "first"


@pytest.mark.parametrize("way", ["absolute", "relative", "twice", "to nothing yet"])
def test_a_link_to_a_folder_is_followed_again_and_again(way, folder):
    link = folder.with_name("link")
    target = Path("a") if way == "relative" else folder
    if way == "twice":
        target = folder.with_name("between")
        target.symlink_to(folder)
    elif way == "to nothing yet":
        shutil.rmtree(folder)
    link.symlink_to(target)
    for text in ("second", "third"):
        write_folder(link, lambda new, t=text: (new / "file").write_text(t))
        assert link.is_symlink() and (folder / "file").read_text() == text


@contextmanager
def full_disk() -> Iterator[None]:
    """A file that grows beyond 1,000 bytes is an error, as on a full disk.

    Not a fixture: pytest reports between a fixture and its test, perhaps into a file.
    """
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


LARGE = replace(GPT, vocab_size=TOKENIZER.n_vocab)
WRITERS = {
    "folder": lambda f: write_folder(
        f, lambda new: (new / "x").write_bytes(b"x" * 9999)
    ),
    "file": lambda f: write_whole(f / "file", "x" * 9999),
    "model": lambda f: save_model(build(), f, TOKENIZER),
    "adapter": lambda f: save_trained(weights_of(build()), f, {"rank": 4}),
    "for transformers": lambda f: save_for_transformers(build(LARGE), TOKENIZER, f),
    "checkpoint": lambda f: save_checkpoint(Trainer(build(), TrainConfig(9)), f),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_an_oserror_that_names_the_place(writer, folder):
    with (
        pytest.raises(
            OSError,
            match=rf"{re.escape(str(folder))}(.|\n)*File too large|"
            rf"File too large(.|\n)*{re.escape(str(folder))}",
        ),
        full_disk(),
    ):
        WRITERS[writer](folder)
    assert (folder / "file").read_text() == "first"
    assert os.listdir(folder.parent) == ["a"] and os.listdir(folder) == ["file"]


# --- a checkpoint -------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [[], ["0.weight"], ["1.weight", "1.bias"]])
def test_a_checkpoint_knows_which_weights_are_trained(frozen, tmp_path):
    def fresh(names: list[str]) -> Trainer:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))  # has no config
        for name, p in model.named_parameters():
            p.requires_grad_(name not in names)
        return Trainer(model, TrainConfig(9), lambda m, x: (m(x).square().sum(), 1))

    trainer = fresh(frozen)
    trainer.train_step([(torch.ones(1, 2),)])
    save_checkpoint(trainer, tmp_path / "c")
    load_checkpoint(fresh(frozen), tmp_path / "c")
    with pytest.raises(ValueError, match="another configuration: frozen is"):
        load_checkpoint(fresh(["0.bias"]), tmp_path / "c")


# --- a model's weights ----------------------------------------------------------------


@pytest.mark.parametrize("config", [GPT, LLAMA], ids=["gpt", "llama"])
def test_weights_of_one_model_fit_into_another(config):
    model, other = build(config), build(config, seed=1)
    token_ids = torch.arange(12).reshape(2, 6)
    expected = model(token_ids)
    weights = weights_of(model)
    assert "out_head.weight" not in weights  # tied: once, as tok_emb.weight
    assert not any(tensor.requires_grad for tensor in weights.values())
    set_weights(other, weights)
    assert torch.equal(other(token_ids), expected)
    with torch.no_grad():
        other.tok_emb.weight.zero_()  # a copy
    assert torch.equal(model(token_ids), expected)


def test_assigned_weights_are_taken_over_and_stay_tied():
    weights = {name: p.clone() for name, p in weights_of(build()).items()}
    other = build(seed=1)
    set_weights(other, weights, assign=True)
    assert other.tok_emb.weight.data_ptr() == weights["tok_emb.weight"].data_ptr()
    assert other.out_head.weight is other.tok_emb.weight


def test_weights_that_do_not_fit_are_listed_and_none_is_loaded():
    model = build()
    before = {name: p.clone() for name, p in weights_of(model).items()}
    weights = {name: torch.zeros_like(p) for name, p in before.items()}
    weights["extra"] = torch.zeros(1)
    weights["final_norm.bias"] = torch.zeros(3)
    del weights["final_norm.weight"]
    with pytest.raises(ValueError) as error:
        set_weights(model, weights)
    parts = ["missing final_norm.weight", "unknown extra"]
    parts += ["final_norm.bias is (3,), not (24,)"]
    for part in parts:
        assert part in str(error.value)
    for name, tensor in weights_of(model).items():
        assert torch.equal(tensor, before[name])


def test_what_was_trained_comes_back(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    kept = {name: p for name, p in model.named_parameters() if p.requires_grad}
    save_trained(kept, tmp_path / "t", {"rank": 4})
    weights, settings = read_trained(tmp_path / "t")
    assert settings == {"rank": 4} and weights.keys() == {"1.weight", "1.bias"}
    assert torch.equal(weights["1.weight"], model[1].weight)
    missing = tmp_path / "none"
    with pytest.raises(FileNotFoundError, match=begins_with(missing)):
        read_trained(missing)
    damaged = tmp_path / "t" / "trained.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match=begins_with(damaged)):
        read_trained(tmp_path / "t")
