"""Write a model of the course as a folder for Hugging Face's Transformers.

    python ch05_pretraining/to_transformers.py runs/tales/model tales_for_transformers

The first is what load_pretrained takes: a folder that save_model has written, or a
name. The second is the new folder, for AutoModelForCausalLM and AutoTokenizer.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from shared.gpt_model import Decoder, GPTModel
from shared.pretrained_weights import (
    CHATML,
    LLAMA_JSON,
    end_token,
    load_pretrained,
    to_gpt2,
    to_llama,
    visible,
)
from shared.support.files import require_plain, write_folder
from shared.tokenizer import BPETokenizer


def transformers_config(model: Decoder, start: int, end: int) -> dict:
    """Return config.json for transformers; the ids begin and end a text or a turn."""
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


def tokenizers_json(tokenizer: BPETokenizer) -> dict:
    """Return tokenizer.json for Hugging Face's tokenizers, as a dictionary."""
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
    model: Decoder, tokenizer: BPETokenizer, folder: str | Path
) -> None:
    """Write a folder that transformers' AutoModelForCausalLM and AutoTokenizer load.

    (Of ours, load_llama reads it, if it is a Llama's.) Raises ValueError if the
    tokenizer has more ids than the model, and as require_plain does.
    """
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


def main() -> None:
    """Read the command line, and write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="a folder of save_model's, or a name")
    parser.add_argument("folder", type=Path, help="the folder to write")
    options = parser.parse_args()
    save_for_transformers(*load_pretrained(options.model), options.folder)


if __name__ == "__main__":
    main()
