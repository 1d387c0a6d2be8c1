"""Folders that are written as a whole or not at all, and what goes into them.

A model's tensors by name, the parts of a model that were trained, and guards for models
that leave the course. No pickle is ever written or read: tensors are
safetensors, all else is JSON.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from shared.support import existing, name_file, read_json

Tensors = dict[str, torch.Tensor]


def read_tensors(path: str | Path) -> Tensors:
    """Return the tensors of a safetensors file; the errors begin with its path.

    Raises FileNotFoundError if it is missing, ValueError if it is damaged.
    """
    try:
        return load_file(existing(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


# --- a folder ------------------------------------------------------------------------


# What file managers and notebooks leave in every folder that they show
DROPPINGS = {".DS_Store", ".ipynb_checkpoints", "Thumbs.db", "desktop.ini"}


def tidy(folder: Path) -> None:
    """Undo what a program that was killed in write_folder has left."""
    new = folder.with_name(f".{folder.name}.new")
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)  # it was killed between the two renames
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)


def write_folder(folder: str | Path, write: Callable[[Path], None]) -> None:
    """Let write(new) fill a new folder, then put it in the place of `folder`.

    If anything goes wrong, the old folder stays as it was, and the new one is removed.
    Where `folder` is a link, the folder that it leads to is replaced. Raises ValueError
    if the old one holds files that the new one would not, and OSError, with a path, for
    what the system refuses, such as a full disk.
    """
    folder = Path(folder).resolve()
    new = folder.with_name(f".{folder.name}.new")
    tidy(folder)
    try:
        new.mkdir(parents=True)
        write(new)
        if folder.exists():
            if foreign := set(os.listdir(folder)) - set(os.listdir(new)) - DROPPINGS:
                advice = "nothing was written: move them away, or choose another folder"
                listed = ", ".join(sorted(foreign))
                raise ValueError(f"{folder} holds other files ({listed}); {advice}")
            folder.rename(folder.with_name(f".{folder.name}.old"))
        new.rename(folder)
    except SafetensorError as error:  # how the library tells of a full disk
        raise OSError(f"{folder} could not be written: {error}") from error
    except OSError as error:
        name_file(error, folder)
        raise
    finally:
        tidy(folder)


# --- a model's weights ---------------------------------------------------------------


def weights_of(model: nn.Module) -> Tensors:
    """Return the model's tensors by name, a tied matrix once, as tok_emb.weight."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters()}


def set_weights(model: nn.Module, weights: Tensors, *, assign: bool = False) -> None:
    """Load what weights_of returns; ValueError lists all that does not fit.

    The numbers are copied; with `assign`, the model takes over the tensors themselves.
    """
    want = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = [f"missing {n}" for n in want if n not in found]
    wrong += [f"unknown {n}" for n in found if n not in want]
    both = [n for n in want if found.get(n, want[n]) != want[n]]
    wrong += [f"{n} is {found[n]}, not {want[n]}" for n in both]
    if wrong:
        raise ValueError(f"the weights do not fit the model: {'; '.join(wrong)}")
    model.load_state_dict(weights, strict=False, assign=assign)
    if assign and hasattr(model, "tie"):
        # A matrix that is used twice was handed in once.
        model.tie()  # type: ignore[operator]


def save_trained(
    weights: Mapping[str, torch.Tensor], folder: str | Path, settings: dict[str, Any]
) -> None:
    """Write tensors by name, and settings, to a folder, for read_trained to read."""
    kept = {name: tensor.detach().contiguous() for name, tensor in weights.items()}

    def write(new: Path) -> None:
        save_file(kept, new / "trained.safetensors")
        (new / "settings.json").write_text(json.dumps(settings), encoding="utf-8")

    write_folder(folder, write)


def read_trained(folder: str | Path) -> tuple[Tensors, dict]:
    """Return the weights and settings that save_trained has written.

    Raises FileNotFoundError if it has not, ValueError if they are damaged.
    """
    settings = read_json(Path(folder) / "settings.json")
    return read_tensors(Path(folder) / "trained.safetensors"), settings


# --- models that leave ---------------------------------------------------------------


def require_plain(model: nn.Module) -> None:
    """Raise ValueError for a model whose layers are no longer those of its class.

    The message says what to do first; TypeError for what is no model of the course.
    """
    from shared.gpt_model import GPTModel
    from shared.llama_model import LlamaModel
    from shared.lora import lora_layers

    if type(model) not in (GPTModel, LlamaModel):
        kinds = f"GPTModel or LlamaModel wanted, not {type(model).__name__}"
        raise TypeError(f"{kinds}; save_classifier keeps a classifier")
    if adapted := lora_layers(model):
        layer = next(iter(adapted))
        raise ValueError(f"{layer} has a LoRA adapter: call merge_lora(model) first")
    kind: Any = GPTModel if isinstance(model, GPTModel) else LlamaModel
    with torch.device("meta"):
        fresh = kind(model.config)
    now, own = _described(model), _described(fresh)
    if wrong := [name for name in now | own if now.get(name) != own.get(name)]:
        advice = "put the model's own layer back first (a classifier's head is kept by "
        rule = f"is not that of a {kind.__name__}"
        raise ValueError(f"{wrong[0]} {rule}: {advice}save_classifier)")


def _described(model: nn.Module) -> dict[str, str]:
    """Return the kind of every layer and the shape of every weight, by name."""
    layers = {n: type(layer).__name__ for n, layer in model.named_modules() if n}
    return layers | {n: str(weight.shape) for n, weight in model.named_parameters()}


# --- GGUF ----------------------------------------------------------------------------

HARMLESS = Path(__file__).with_name("harmless_gguf.json")


def refuse_gguf_settings(settings: dict, head_dim: int, known: set[str]) -> None:
    """Raise ValueError for a setting of a model that would change the arithmetic.

    `known` are the settings (without "llama." or "gpt2.") that the reader has taken.
    Any other must be off (0, False, empty), or have a value that changes nothing in
    llama.cpp.
    """
    prefix = settings["general.architecture"] + "."
    # As float32, in which a file keeps them
    scale, eps = torch.tensor([head_dim**-0.5, 1e-5]).tolist()
    lengths = ["attention.key_length", "attention.value_length", "rope.dimension_count"]
    own = {"attention.scale": [0, scale], "attention.layer_norm_epsilon": [eps]}
    harmless = read_json(HARMLESS) | own | dict.fromkeys(lengths, [head_dim])
    # What only YaRN reads, which is refused as a type
    idle = r"rope\.scaling\.(yarn_(?!attn).+|original_context_length|finetuned)"
    if settings.get(prefix + "rope.scaling.type") == "none":
        idle += r"|rope\.scaling\.factor|rope\.scale_linear"
    for key, value in settings.items():
        name = key.removeprefix(prefix)
        ours = name == key or name in known or re.fullmatch(idle, name)
        if not ours and value not in harmless.get(name, (0, "", [])):
            raise ValueError(f"{key} is {value!r}, which our model cannot compute")
