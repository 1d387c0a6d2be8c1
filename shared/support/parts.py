"""The part of a model that was trained, in a folder, without the rest."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from shared.support.files import write_folder


def save_weights(
    weights: Mapping[str, torch.Tensor], folder: str | Path, settings: dict[str, Any]
) -> None:
    """Write tensors by name, and settings, for files.read_trained to read."""
    kept = {name: tensor.detach().contiguous() for name, tensor in weights.items()}

    def write(new: Path) -> None:
        save_file(kept, new / "trained.safetensors")
        (new / "settings.json").write_text(json.dumps(settings), encoding="utf-8")

    write_folder(folder, write)
