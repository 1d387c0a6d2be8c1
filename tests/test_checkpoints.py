"""Chapter 5's checkpoints.py: one program in a folder, checkpoints that are whole."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from shared.pretraining import TrainConfig, Trainer
from shared.support import COURSE

sys.path.append(str(COURSE / "ch05_pretraining"))
from checkpoints import (
    add_checkpoint,
    checkpoints,
    load_newest,
    locked,
    save_checkpoint,
    set_aside,
    tidy_checkpoints,
)

# --- one program in a folder ----------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
sys.path.append(sys.argv[2])
from checkpoints import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_a_folder_is_free_when_its_program_has_ended(end, tmp_path):
    command = [
        sys.executable,
        "-c",
        HOLD,
        str(tmp_path / "a"),
        str(COURSE / "ch05_pretraining"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "locked\n"
        rule = f"another program works in {re.escape(str(tmp_path))}"
        with pytest.raises(ValueError, match=rule), locked(tmp_path / "a"):
            pass
        getattr(holder, end)()
        holder.wait()
        for _ in range(2):
            with locked(tmp_path / "a"), locked(tmp_path / "b"):
                pass


# --- checkpoints ----------------------------------------------------------------------


def trainer_at(step: int, model: nn.Module | None = None) -> Trainer:
    """Return a trainer that says to have taken some steps."""
    trainer = Trainer(model or nn.Linear(2, 2), TrainConfig(9))
    trainer.step = step
    return trainer


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


def test_checkpoints_go_by_number_and_nothing_else_counts(tmp_path):
    for step in (2, 10, 9):
        save_checkpoint(trainer_at(step), tmp_path / f"step-{step}")
    others = ["step-best", "step-12", "step-11.bak", "step-", "step-13-old", "last"]
    for name in others:  # copies
        shutil.copytree(tmp_path / "step-10", tmp_path / name)
    (tmp_path / "step-14").mkdir()
    (tmp_path / "step-15").touch()
    assert names(tmp_path) == ["step-2", "step-9", "step-10"]
    trainer = trainer_at(0)
    assert load_newest(trainer, tmp_path) == [] and trainer.step == 10
    trainer.step = 12
    add_checkpoint(trainer, tmp_path, keep=1)
    assert names(tmp_path) == ["step-00000012"]
    assert {*others, "step-14", "step-15"} <= set(os.listdir(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "no record", "half a record"])
def test_the_good_checkpoint_is_kept_and_the_damaged_one_set_aside(damage, tmp_path):
    for step in (5, 8):
        save_checkpoint(trainer_at(step), tmp_path / f"step-{step:08d}")
    newest = tmp_path / "step-00000008"
    if damage == "cut":
        (newest / "model.safetensors").write_bytes(b"")
    else:
        text = "" if damage == "no record" else '{"step": 8, "sha'
        (newest / "checkpoint.json").write_text(text)
    for n in (1, 2):  # damaged twice
        trainer = trainer_at(0)
        useless = load_newest(trainer, tmp_path)
        assert trainer.step == 5 and useless == [newest]
        set_aside(newest)
        assert names(tmp_path) == ["step-00000005"]
        shutil.copytree(tmp_path / f"unusable-{n}-step-00000008", newest)
    set_aside(newest)
    trainer.step = 6
    add_checkpoint(trainer, tmp_path, keep=1)
    assert names(tmp_path) == ["step-00000006"]
    assert load_newest(trainer_at(0), tmp_path) == []


def test_without_a_good_checkpoint_nothing_is_set_aside(tmp_path):
    assert load_newest(trainer_at(0), tmp_path) == []
    save_checkpoint(trainer_at(5), tmp_path / "step-5")
    (tmp_path / "step-5" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no checkpoint that can be used"):
        load_newest(trainer_at(0), tmp_path)
    assert names(tmp_path) == ["step-5"]


def test_leftovers_of_checkpoints_are_tidied_and_nothing_else(tmp_path):
    save_checkpoint(trainer_at(5), tmp_path / ".step-5.old")  # killed between renames
    save_checkpoint(trainer_at(6), tmp_path / "step-6")
    for name in (".step-6.new", ".step-6.old", ".git", ".step-best.new"):
        (tmp_path / name).mkdir()
    tidy_checkpoints(tmp_path)
    assert set(os.listdir(tmp_path)) == {"step-5", "step-6", ".git", ".step-best.new"}
