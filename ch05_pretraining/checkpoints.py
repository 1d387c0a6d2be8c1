"""The folder of a run: one program at a time, and checkpoints that are whole."""

import errno
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from shared.pretraining import Trainer
from shared.support import read_json
from shared.support.files import load_checkpoint, save_checkpoint, tidy


def lock(file: Any) -> None:
    """Lock an open file, or raise OSError; the system unlocks it when it is closed."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder, made if need be, for this program; ValueError if another has it.

    However a program ends, also when it is killed, it lets go of its folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            lock(file)
        except OSError as error:  # of another kind where a file system has no locks
            if error.errno in (errno.EACCES, errno.EAGAIN):
                rule = "wait until it has ended, or choose another folder"
                raise ValueError(f"another program works in {folder}: {rule}") from None
        yield


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, by their steps.

    Those are the folders named step- and a number with a record of the same step, or
    with a record that is damaged. What else lies there, a copy say, does not count.
    """
    found = []
    for path in folder.glob("step-*"):
        number = re.fullmatch(r"step-([0-9]+)", path.name)
        if number and (path / "checkpoint.json").is_file():
            step = int(number[1])
            try:
                recorded = read_json(path / "checkpoint.json")["step"]
            except (ValueError, LookupError, TypeError):
                recorded = step
            if recorded == step:
                found.append((step, path))
    return [path for _, path in sorted(found)]


def add_checkpoint(trainer: Trainer, folder: Path, keep: int) -> None:
    """Save a checkpoint of this step, if there is none, and delete all but `keep`."""
    new = folder / f"step-{trainer.step:08d}"
    if new not in checkpoints(folder):
        if new.exists():
            set_aside(new)  # it is something else
        save_checkpoint(trainer, new)
    for old in checkpoints(folder)[:-keep]:
        with suppress(OSError):  # what is in use elsewhere is deleted the next time
            leftover = old.rename(old.with_name(f".{old.name}.new"))
            shutil.rmtree(leftover, ignore_errors=True)


def tidy_checkpoints(folder: Path) -> None:
    """Undo what a killed program has left among the checkpoints in a folder."""
    for path in list(folder.glob(".step-*")):
        if name := re.fullmatch(r"\.(step-[0-9]+)\.(new|old)", path.name):
            tidy(folder / name[1])


def load_newest(trainer: Trainer, folder: Path) -> list[Path]:
    """Load the newest checkpoint that is whole, if there is one at all.

    Returns the newer ones, which cannot be used; ValueError if none can.
    """
    useless: list[Path] = []
    for path in reversed(checkpoints(folder)):
        try:
            load_checkpoint(trainer, path)
            return useless
        except (ValueError, FileNotFoundError) as error:
            print(f"warning: {error}", file=sys.stderr)
            useless.append(path)
    if useless:
        raise ValueError(f"{folder} has no checkpoint that can be used; see above")
    return []


def set_aside(path: Path) -> None:
    """Give a checkpoint that cannot be used a name under which it does not count."""
    names = (path.with_name(f"unusable-{n}-{path.name}") for n in count(1))
    path.rename(next(new for new in names if not new.exists()))
