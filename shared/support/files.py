"""Folders that are written as a whole or not at all, and what goes into them.

A model's tensors by name, the parts of a model that were trained, and models in the
form of Hugging Face's transformers. No pickle is ever written or read: tensors are
safetensors, all else is JSON.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from shared.support import existing, name_file, read_json

if TYPE_CHECKING:
    from shared.gpt_model import Decoder
    from shared.tokenizer import BPETokenizer

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
                listed = ", ".join(sorted(foreign))
                raise ValueError(
                    f"{folder} holds other files ({listed}); nothing was written: "
                    "move them away, or choose another folder"
                )
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
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = [f"missing {name}" for name in expected if name not in found]
    wrong += [f"unknown {name}" for name in found if name not in expected]
    for name, shape in expected.items():
        if found.get(name, shape) != shape:
            wrong.append(f"{name} is {found[name]}, not {shape}")
    if wrong:
        raise ValueError(f"the weights do not fit the model: {'; '.join(wrong)}")
    model.load_state_dict(weights, strict=False, assign=assign)
    tie = getattr(model, "tie", None)
    if assign and tie is not None:
        tie()  # a matrix that is used twice was handed in once


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


# --- transformers --------------------------------------------------------------------


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
        raise ValueError(
            f"{wrong[0]} is not that of a {kind.__name__}: put the model's own layer "
            "back first (a classifier's head is kept by save_classifier)"
        )


def _described(model: nn.Module) -> dict[str, str]:
    """Return the kind of every layer and the shape of every weight, by name."""
    layers = {n: type(layer).__name__ for n, layer in model.named_modules() if n}
    return layers | {n: str(weight.shape) for n, weight in model.named_parameters()}


def transformers_config(model: "Decoder", start: int, end: int) -> dict:
    """Return config.json for transformers; the ids begin and end a text or a turn."""
    from shared.gpt_model import GPTModel
    from shared.pretrained_weights import LLAMA_JSON

    config: Any = model.config
    common = {
        "vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_weights,
        "bos_token_id": start, "eos_token_id": end, "pad_token_id": end,
        "dtype": str(model.tok_emb.weight.dtype).removeprefix("torch."),
    }  # fmt: skip
    if isinstance(model, GPTModel):
        dropouts = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
        return common | dict.fromkeys(dropouts, config.dropout) | {
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
            "n_positions": config.context_length, "n_ctx": config.context_length,
            "n_embd": config.emb_dim, "n_head": config.n_heads,
            "n_layer": config.n_layers, "layer_norm_epsilon": 1e-5,
        }  # fmt: skip
    sizes = {theirs: getattr(config, ours) for ours, theirs in LLAMA_JSON.items()}
    kind = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    return common | kind | sizes


def tokenizers_json(tokenizer: "BPETokenizer") -> dict:
    """Return tokenizer.json for Hugging Face's tokenizers, as a dictionary."""
    from shared.pretrained_weights import visible

    special = tokenizer.special_tokens
    ordinary = sorted(tokenizer.vocab.keys() - special.values())
    ids = {visible(tokenizer.vocab[i]): i for i in ordinary}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    flags["special"] = True
    cut: dict[str, Any] = {"type": "Split", "behavior": "Isolated", "invert": False}
    cut["pattern"] = {"Regex": tokenizer.pattern}
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    by_bytes["use_regex"] = False  # its own, which is GPT-2's; ours has cut before
    merges = [[visible(left), visible(right)] for left, right in tokenizer.merges]
    return {
        "version": "1.0",
        "added_tokens": [flags | {"id": i, "content": t} for t, i in special.items()],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, by_bytes]},
        "decoder": by_bytes,
        "model": {"type": "BPE", "vocab": ids | special, "merges": merges},
    }


def save_for_transformers(
    model: "Decoder", tokenizer: "BPETokenizer", folder: str | Path
) -> None:
    """Write a folder that transformers' AutoModelForCausalLM and AutoTokenizer load.

    (Of ours, load_llama reads it, if it is a Llama's.) Raises ValueError if the
    tokenizer has more ids than the model, and as require_plain does.
    """
    from shared.pretrained_weights import CHATML, end_token, to_gpt2, to_llama

    require_plain(model)
    if tokenizer.n_vocab > model.config.vocab_size:
        raise ValueError(
            f"{tokenizer.n_vocab} ids, but {model.config.vocab_size} in the model"
        )
    end = end_token(tokenizer)  # of a turn, or of a text
    start = tokenizer.special_tokens.get("<|im_start|>", tokenizer.eot_token)
    config = transformers_config(model, start, end)
    convert: Any = to_gpt2 if config["model_type"] == "gpt2" else to_llama
    about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    about["bos_token"] = tokenizer.decode([start])
    about["eos_token"] = about["pad_token"] = tokenizer.decode([end])
    about["padding_side"] = "left"  # what goes on is to the right
    about["clean_up_tokenization_spaces"] = False
    about["model_max_length"] = model.config.context_length
    if tokenizer.special_tokens.keys() >= {"<|im_start|>", "<|im_end|>"}:
        about["chat_template"] = CHATML
    settings = {"config": config, "tokenizer_config": about}
    settings["tokenizer"] = tokenizers_json(tokenizer)

    def write(new: Path) -> None:
        save_file(convert(model), new / "model.safetensors", {"format": "pt"})
        for name, content in settings.items():
            text = json.dumps(content, ensure_ascii=False)
            (new / f"{name}.json").write_text(text, encoding="utf-8")

    write_folder(folder, write)


# --- GGUF ----------------------------------------------------------------------------


def refuse_gguf_settings(settings: dict, head_dim: int, known: set[str]) -> None:
    """Raise ValueError for a setting of a model that would change the arithmetic.

    `known` are the settings (without "llama." or "gpt2.") that the reader has taken.
    Any other must be off (0, False, empty), or have a value that changes nothing in
    llama.cpp.
    """
    prefix = settings["general.architecture"] + "."
    float32_scale, float32_eps = torch.tensor([head_dim**-0.5, 1e-5]).tolist()
    harmless: dict[str, tuple] = {
        "attention.key_length": (head_dim,), "attention.value_length": (head_dim,),
        "rope.dimension_count": (head_dim,), "attention.scale": (0, float32_scale),
        "attention.causal": (True,), "tensor_data_layout": ("Meta AI original pth",),
        "rope.scaling.type": ("none", "linear"), "rope.scaling.attn_factor": (1,),
        "rope.scaling.factor": (0, 1), "rope.scale_linear": (0, 1),
        "rope.scaling.yarn_attn_factor": (1,),
        "embedding_scale": (0, 1), "logit_scale": (0, 1), "residual_scale": (0, 1),
        "attention.layer_norm_epsilon": (float32_eps,),
    }  # fmt: skip
    # What only YaRN reads, which is refused as a type
    idle = r"rope\.scaling\.(yarn_(?!attn).+|original_context_length|finetuned)"
    if settings.get(prefix + "rope.scaling.type") == "none":
        idle += r"|rope\.scaling\.factor|rope\.scale_linear"
    for key, value in settings.items():
        name = key.removeprefix(prefix)
        if name == key or name in known or re.fullmatch(idle, name):
            continue
        if value not in harmless.get(name, (0, "", [])):
            raise ValueError(f"{key} is {value!r}, which our model cannot compute")
