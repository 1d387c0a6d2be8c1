"""The folder of a run: one program at a time, and checkpoints that are whole."""

import errno
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from itertools import count
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from safetensors.torch import save_file

from shared.pretraining import Trainer
from shared.support import read_json, sha256_of
from shared.support.files import (
    read_tensors,
    set_weights,
    tidy,
    weights_of,
    write_folder,
)


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


def trainer_settings(trainer: Trainer) -> dict:
    """Return what a checkpoint must agree on: all settings but the steps and rates.

    And the names of the weights that are not trained, for which there is no state.
    """
    model: Any = trainer.model
    config = getattr(model, "config", None)  # a model of one's own may have none
    free = {"max_steps", "learning_rate", "warmup_steps", "final_share"}
    settings: dict[str, Any] = {"kind": type(model).__name__}
    for each in (config, trainer.config):
        if is_dataclass(each) and not isinstance(each, type):
            settings |= asdict(each)
    weights = model.named_parameters()
    settings["frozen"] = [name for name, p in weights if not p.requires_grad]
    return {name: value for name, value in settings.items() if name not in free}


def save_checkpoint(trainer: Trainer, folder: str | Path) -> None:
    """Write everything that is needed to go on exactly where a training is.

    That is weights, optimizers, step and random state, with the SHA-256 of every file.
    """
    tensors = {"random": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    for n, optimizer in enumerate(trainer.optimizers):
        for i, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"{n}.{i}.{name}"] = torch.as_tensor(value).contiguous()
    record: dict[str, Any] = {"step": trainer.step, "tokens": trainer.tokens}
    record["settings"] = trainer_settings(trainer)

    def write(new: Path) -> None:
        save_file(weights_of(trainer.model), new / "model.safetensors")
        save_file(tensors, new / "training.safetensors")
        files = sorted(new.iterdir())
        record["sha256"] = {file.name: sha256_of(file) for file in files}
        (new / "checkpoint.json").write_text(json.dumps(record, indent=1), "utf-8")

    write_folder(folder, write)


def load_checkpoint(trainer: Trainer, folder: str | Path) -> None:
    """Bring a fresh trainer to the state of a checkpoint.

    Raises FileNotFoundError for a missing file, and ValueError, and changes nothing, if
    one is damaged, or if the checkpoint belongs to another configuration; the message
    says which settings differ.
    """
    folder, settings = Path(folder), trainer_settings(trainer)
    record = read_json(folder / "checkpoint.json")
    try:
        stored, step, tokens = record["settings"], record["step"], record["tokens"]
        hashes = record["sha256"].items()
        altered = [name for name, it in hashes if sha256_of(folder / name) != it]
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is no checkpoint: {error!r}") from error
    if altered:
        raise ValueError(f"{folder} is damaged: {', '.join(altered)} was altered")
    if differ := [name for name in settings if stored.get(name) != settings[name]]:
        pairs = [(n, short(stored.get(n)), short(settings[n])) for n in differ]
        listed = [f"{name} is {there}, here {here}" for name, there, here in pairs]
        message = f"{folder} belongs to another configuration: {'; '.join(listed)}"
        raise ValueError(message)
    set_weights(trainer.model, read_tensors(folder / "model.safetensors"))
    tensors = read_tensors(folder / "training.safetensors")
    torch.set_rng_state(tensors.pop("random"))
    cuda_state = tensors.pop("random.cuda", None)
    if cuda_state is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda_state)
    states = [optimizer.state_dict() for optimizer in trainer.optimizers]
    for name, tensor in tensors.items():
        n, i, key = name.split(".")
        states[int(n)]["state"].setdefault(int(i), {})[key] = tensor
    for optimizer, state in zip(trainer.optimizers, states, strict=True):
        optimizer.load_state_dict(state)
    trainer.step, trainer.tokens = step, tokens


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
