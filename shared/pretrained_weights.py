"""Two real language models, SmolLM2 and GPT-2, running in the classes that you wrote,
and one of them answers your questions.

Generated from ch05_pretraining/ch05_pretrained_weights.ipynb by `python -m shared.export`;
edit the notebook, not this file.
"""

import json
import re
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import gguf
import huggingface_hub
import numpy as np
import regex
import tiktoken
import torch
from safetensors.torch import load_file, save_file

from shared import text_data
from shared.fetch import FetchError, fetch_smollm2
from shared.gpt_model import GPT_CONFIGS, Decoder, GPTConfig, GPTModel
from shared.llama_model import LlamaConfig, LlamaModel, pairs_to_halves
from shared.pretraining import (
    generate,
    load_model,
    set_weights,
    weights_of,
    write_folder,
)
from shared.text_data import END_OF_TEXT, BPETokenizer, Tokenizer

__all__ = [
    "GGUF_NAMES", "rename", "open_gguf", "gguf_config", "gguf_weights",
    "model_with", "load_gguf", "SMOLLM2_PATTERN", "PretrainedTokenizer",
    "load_gguf_tokenizer", "SMOLLM2_SYSTEM", "chat_prompt", "fill_frame",
    "Conversation", "GPT2_NAMES", "QKV", "from_gpt2", "load_gpt2",
    "load_pretrained", "tokenizer_for", "LLAMA_NAMES", "to_gpt2", "to_llama",
    "transformers_config", "tokenizers_json", "CHATML", "save_for_transformers",
]  # fmt: skip

GGUF_NAMES = {
    "token_embd": "tok_emb", "output_norm": "final_norm", "output": "out_head",
    "attn_norm": "norm1", "attn_q": "attention.W_query", "attn_k": "attention.W_key",
    "attn_v": "attention.W_value", "attn_output": "attention.out_proj",
    "ffn_norm": "norm2", "ffn_gate": "feed_forward.gate", "ffn_up": "feed_forward.up",
    "ffn_down": "feed_forward.project",
}  # fmt: skip


def rename(name: str, names: dict[str, str], old: str, new: str) -> str:
    """Return another program's name of a tensor; `old` and `new` mean "blocks"."""
    found = re.fullmatch(rf"(?:{old}\.(\d+)\.)?(.+)\.(weight|bias)", name)
    if not found or found[2] not in names:
        return name
    return (f"{new}.{found[1]}." if found[1] else "") + f"{names[found[2]]}.{found[3]}"


@contextmanager
def open_gguf(path: str | Path):
    """Give the settings (a dictionary) and the tensors of a GGUF file, in a `with`.

    Whatever is wrong with the file, there or inside the `with`, becomes a ValueError
    with its path.
    """
    try:
        reader = gguf.GGUFReader(path)
        yield (
            {key: field.contents() for key, field in reader.fields.items()},
            reader.tensors,
        )
    except (OSError, ValueError, LookupError, NotImplementedError) as error:
        raise ValueError(f"cannot read {path} as GGUF: {error!r}") from error


def gguf_config(settings: dict, tensors: list[gguf.ReaderTensor]) -> LlamaConfig:
    """Return the configuration of a Llama-style GGUF file."""
    if (architecture := settings["general.architecture"]) != "llama":
        raise ValueError(
            f"the architecture {architecture!r} is not supported, only 'llama'"
        )
    if any(key.startswith("llama.rope.scaling") for key in settings):
        raise ValueError("scaled rotary positions are not supported")
    sizes = {
        "vocab_size": "vocab_size", "context_length": "context_length",
        "emb_dim": "embedding_length", "n_heads": "attention.head_count",
        "n_kv_heads": "attention.head_count_kv", "n_layers": "block_count",
        "hidden_dim": "feed_forward_length", "rope_base": "rope.freq_base",
    }  # fmt: skip
    eps = np.float32(settings["llama.attention.layer_norm_rms_epsilon"])
    rest = {ours: settings[f"llama.{key}"] for ours, key in sizes.items()}
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    return LlamaConfig(**rest, norm_eps=float(str(eps)), tie_weights=tied)


def gguf_weights(tensors: list[gguf.ReaderTensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a GGUF file as float32, under our names."""
    weights = {}
    for tensor in tensors:
        numbers = np.array(
            gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32
        )
        weights[rename(tensor.name, GGUF_NAMES, "blk", "blocks")] = torch.from_numpy(
            numbers
        )
    return weights


def model_with(model_class, config, weights: dict[str, torch.Tensor]) -> Decoder:
    """Return a model that takes over the weights; ValueError lists misfits."""
    with torch.device("meta"):
        model = model_class(config)
    set_weights(model, weights, assign=True)
    return model.eval()


def load_gguf(path: str | Path) -> LlamaModel:
    """Return the model in a Llama-style GGUF file, with float32 weights.

    Raises ValueError if it cannot be read, or has another architecture, a type of
    tensor that gguf cannot dequantise, or tensors that are missing, unknown or
    misshapen (all listed).
    """
    with open_gguf(path) as (settings, tensors):
        return model_with(
            LlamaModel, gguf_config(settings, tensors), gguf_weights(tensors)
        )


SMOLLM2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
)


class PretrainedTokenizer:
    """Byte-level BPE with a given vocabulary and pattern; a `Tokenizer`.

    `vocab` maps ids to bytes, without special tokens, in the order of `merges`;
    `special_tokens` maps texts to ids. Bytes that the vocabulary lacks are dropped.
    """

    def __init__(self, vocab, merges, special_tokens: dict[str, int], pattern: str):
        self.vocab, self.merges, self.pattern = dict(vocab), list(merges), pattern
        self.special_tokens = dict(special_tokens)
        self.eot_token = special_tokens[END_OF_TEXT]
        self._ids = {token: i for i, token in self.vocab.items()}
        self._order = {pair: rank for rank, pair in enumerate(self.merges)}
        self._missing = {byte for byte in range(256) if bytes([byte]) not in self._ids}
        parts = {"mergeable_ranks": self._ids, "special_tokens": self.special_tokens}
        self._encoding = tiktoken.Encoding("pretrained", pat_str=pattern, **parts)
        self.n_vocab, self.decode = self._encoding.n_vocab, self._encoding.decode

    encode = BPETokenizer.encode  # special tokens first, encode_ordinary for the rest

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of a text, special tokens read as ordinary text."""
        text = text_data.replace_lone_surrogates(text)
        if self._missing.isdisjoint(text.encode()):
            return self._encoding.encode_ordinary(text)
        ids = []
        for piece in regex.findall(self.pattern, text):
            kept = bytes(byte for byte in piece.encode() if byte not in self._missing)
            ids += [
                self._ids[token] for token in text_data.apply_merges(kept, self._order)
            ]
        return ids


def load_gguf_tokenizer(path: str | Path) -> PretrainedTokenizer:
    """Return the tokenizer in a GGUF file; ValueError if it is not SmolLM2's kind."""
    byte_of = text_data.gpt2_byte_of_character()

    def as_bytes(token: str) -> bytes:
        return bytes(byte_of[character] for character in token)

    with open_gguf(path) as (settings, _):
        if (kind := settings["tokenizer.ggml.pre"]) != "smollm":
            raise ValueError(
                f"the tokenizer kind {kind!r} is not supported, only 'smollm'"
            )
        tokens = settings["tokenizer.ggml.tokens"]
        kinds = settings["tokenizer.ggml.token_type"]
        special = {
            t: i for i, t in enumerate(tokens) if kinds[i] == gguf.TokenType.CONTROL
        }
        vocab = {
            i: as_bytes(token) for i, token in enumerate(tokens) if token not in special
        }
        pairs = [pair.split(" ") for pair in settings["tokenizer.ggml.merges"]]
        merges = [(as_bytes(left), as_bytes(right)) for left, right in pairs]
        return PretrainedTokenizer(vocab, merges, special, SMOLLM2_PATTERN)


SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chat_prompt(messages: list[dict[str, str]], system: str = SMOLLM2_SYSTEM) -> str:
    """Return a conversation in ChatML, ending where the assistant's answer begins.

    For texts that you trust; Conversation.ids is safe for any. A message has a "role"
    (system, user or assistant) and a "content". Unless the first is a system message,
    `system` comes first.
    """
    if not messages or messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def fill_frame(frame: str, texts: list[str], tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a frame with a text in the place of each null character.

    Special tokens count in the frame only; what looks like one in a text is plain text.
    """
    first, *rest = frame.split("\0")
    ids = tokenizer.encode(first, allowed_special="all")
    for text, after in zip(texts, rest, strict=True):
        ids += tokenizer.encode_ordinary(text)
        ids += tokenizer.encode(after, allowed_special="all")
    return ids


class Conversation:
    """A conversation with a chat model; `messages` holds all turns."""

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, system: str = SMOLLM2_SYSTEM
    ):
        self.model, self.tokenizer = model, tokenizer
        self.messages = [{"role": "system", "content": system}]
        if self.ids()[0] != tokenizer.encode("<|im_start|>", allowed_special="all")[-1]:
            raise ValueError(
                "this model's tokenizer has no <|im_start|>: it is no chat model"
            )

    def ids(self, *more: dict[str, str]) -> list[int]:
        """Return the ids of the prompt and `more` messages, whose words are text."""
        messages = [*self.messages, *more]
        frame = chat_prompt([message | {"content": "\0"} for message in messages])
        contents = [message["content"] for message in messages]
        return fill_frame(frame, contents, self.tokenizer)

    def reply(
        self, text: str, max_new_tokens: int = 200, write=lambda _: None, **sampling
    ) -> str:
        """Say something, return the answer; a function `write` gets it piece by piece.

        `sampling` is handed to generate. The answer is cut after max_new_tokens, or
        where the context is full. Raises ValueError if the conversation has outgrown
        the context: begin a new one, or drop old messages. After an error or an
        interrupt, it is as it was before.
        """
        question = {"role": "user", "content": text}
        device = self.model.tok_emb.weight.device
        prompt = torch.tensor([self.ids(question)], device=device)
        end = self.tokenizer.encode("<|im_end|>", allowed_special="all")[0]
        new = []
        shown = 0

        def on_token(ids: torch.Tensor) -> None:
            nonlocal shown
            new.extend(i for i in ids.tolist() if i != end)
            so_far = self.tokenizer.decode(new)
            if not so_far.endswith("\ufffd"):  # a character is not yet complete
                write(so_far[shown:])
                shown = len(so_far)

        options = {"stop_token": end, "on_token": on_token}
        generate(self.model, prompt, max_new_tokens, **options, **sampling)
        answer = self.tokenizer.decode(new)
        write(answer[shown:])
        self.messages += [question, {"role": "assistant", "content": answer}]
        return answer


GPT2_NAMES = {
    "transformer.wte": "tok_emb", "transformer.wpe": "pos_emb",
    "transformer.ln_f": "final_norm", "ln_1": "norm1",
    "attn.c_attn": "attention.W_qkv", "attn.c_proj": "attention.out_proj",
    "ln_2": "norm2", "mlp.c_fc": "feed_forward.expand",
    "mlp.c_proj": "feed_forward.project", "lm_head": "out_head",
}  # fmt: skip
QKV = ("W_query", "W_key", "W_value")


def from_gpt2(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return GPT-2's weights under our names, from those of GPT2LMHeadModel."""
    weights = {}
    for name, tensor in tensors.items():
        if name.endswith(("lm_head.weight", ".attn.bias", ".attn.masked_bias")):
            continue  # the embedding once more; a causal mask
        if ".c_" in name and tensor.ndim == 2:
            tensor = tensor.T  # stored for x @ W
        # Some files leave it out
        name = "transformer." + name.removeprefix("transformer.")
        ours = rename(name, GPT2_NAMES, "transformer.h", "blocks")
        names = (
            [ours.replace("W_qkv", part) for part in QKV] if "W_qkv" in ours else [ours]
        )
        for part, numbers in zip(names, tensor.chunk(len(names)), strict=True):
            weights[part] = numbers.contiguous()
    return weights


def load_gpt2(size: str = "124M", *, download: bool = True) -> GPTModel:
    """Return GPT-2 with OpenAI's weights: 124M, 355M, 774M or 1558M, from Hugging Face.

    Downloads 0.5 to 6.4 GB once, into Hugging Face's cache, if `download` allows it.
    Raises ValueError for another size, FetchError if the weights are not there and
    cannot be brought.
    """
    repositories = {
        "124M": "gpt2",
        "355M": "gpt2-medium",
        "774M": "gpt2-large",
        "1558M": "gpt2-xl",
    }
    if size not in repositories:
        raise ValueError(f"GPT-2 comes in {', '.join(repositories)}, not {size!r}")
    repository, file = f"openai-community/{repositories[size]}", "model.safetensors"
    try:
        path = huggingface_hub.hf_hub_download(repository, file, local_files_only=True)
    except huggingface_hub.errors.LocalEntryNotFoundError:
        try:
            if not download:
                raise ConnectionError("no download was wanted")
            # Without a connection, the download would retry for long
            urlopen("https://huggingface.co", timeout=10).close()
            path = huggingface_hub.hf_hub_download(repository, file)
        except Exception as error:  # of many types
            advice = "connect and run again, or take 'smollm2-135m'"
            raise FetchError(f"{repository} is not here: {error}; {advice}") from error
    return model_with(GPTModel, GPT_CONFIGS[size], from_gpt2(load_file(path)))


def load_pretrained(name: str | Path = "smollm2-135m") -> Decoder:
    """Return a model in evaluation mode, by name or from a folder of save_model.

    Names: "smollm2-135m", "gpt2-124m", "gpt2-355m", "gpt2-774m", "gpt2-1558m".
    Raises ValueError for an unknown name, FetchError if it has to be downloaded and
    cannot be.
    """
    if Path(name).is_dir():
        return load_model(name).eval()
    if str(name) == "smollm2-135m":
        return load_gguf(fetch_smollm2())
    if str(name).startswith("gpt2-"):
        return load_gpt2(str(name).removeprefix("gpt2-").upper())
    known = "smollm2-135m, gpt2-124m (355m, …) or a folder"
    raise ValueError(
        f"no model {str(name)!r}: {known} (there is no {Path(name).resolve()})"
    )


def tokenizer_for(name: str | Path = "smollm2-135m") -> Tokenizer:
    """Return the tokenizer that belongs to load_pretrained(name)."""
    if str(name) == "smollm2-135m":
        return load_gguf_tokenizer(fetch_smollm2())
    if Path(name).is_dir():
        return BPETokenizer.load(Path(name) / "tokenizer.json")
    if str(name).startswith("gpt2-"):
        return BPETokenizer.from_gpt2_files()
    raise ValueError(
        f"no tokenizer for {str(name)!r}: it is neither a known name nor a folder"
    )


LLAMA_NAMES = {
    "tok_emb": "model.embed_tokens", "final_norm": "model.norm",
    "norm1": "input_layernorm",
    "attention.W_query": "self_attn.q_proj", "attention.W_key": "self_attn.k_proj",
    "attention.W_value": "self_attn.v_proj", "attention.out_proj": "self_attn.o_proj",
    "norm2": "post_attention_layernorm", "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj", "feed_forward.project": "mlp.down_proj",
    "out_head": "lm_head",
}  # fmt: skip


def to_gpt2(model: GPTModel) -> dict[str, torch.Tensor]:
    """Return the weights under the names of transformers' GPT2LMHeadModel."""
    state, tensors = weights_of(model), {}
    names = {ours: theirs for theirs, ours in GPT2_NAMES.items()}
    # For biases that only their model has
    zeros = torch.zeros_like(state["final_norm.bias"])
    for block in [f"blocks.{i}.attention" for i in range(model.config.n_layers)]:
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{block}.{part}.{kind}", zeros) for part in QKV]
            state[f"{block}.W_qkv.{kind}"] = torch.cat(parts)
    for name, tensor in state.items():
        theirs = rename(name, names, "blocks", "transformer.h")
        is_product = ".c_" in theirs and tensor.ndim == 2
        tensors[theirs] = (tensor.T if is_product else tensor).contiguous()
    return tensors


def to_llama(model: LlamaModel) -> dict[str, torch.Tensor]:
    """Return the weights under the names of transformers' LlamaForCausalLM."""
    tensors = {}
    for name, tensor in weights_of(model).items():
        if "W_query" in name or "W_key" in name:
            tensor = pairs_to_halves(tensor, tensor.shape[0] // model.config.head_dim)
        tensors[rename(name, LLAMA_NAMES, "blocks", "model.layers")] = tensor
    return tensors


def transformers_config(config: GPTConfig | LlamaConfig, end: int, dtype: str) -> dict:
    """Return config.json for transformers; `end` is the id that ends a text."""
    common = {
        "vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_weights,
        "bos_token_id": end, "eos_token_id": end, "dtype": dtype,
    }  # fmt: skip
    if isinstance(config, GPTConfig):
        places = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
        dropout = dict.fromkeys(places, config.drop_rate)
        return common | dropout | {
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
            "n_positions": config.context_length, "n_embd": config.emb_dim,
            "n_head": config.n_heads, "n_layer": config.n_layers,
        }  # fmt: skip
    return common | {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": config.context_length, "hidden_size": config.emb_dim,
        "intermediate_size": config.hidden_dim, "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads, "num_hidden_layers": config.n_layers,
        "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_base,
    }  # fmt: skip


def tokenizers_json(tokenizer: BPETokenizer | PretrainedTokenizer) -> dict:
    """Return tokenizer.json for Hugging Face's tokenizers, as a dictionary."""
    byte_of = text_data.gpt2_byte_of_character()
    character_of = {byte: character for character, byte in byte_of.items()}

    def visible(token: bytes) -> str:
        return "".join(character_of[byte] for byte in token)

    special = tokenizer.special_tokens
    vocab = {i: t for i, t in tokenizer.vocab.items() if i not in special.values()}
    ids = {visible(token): i for i, token in vocab.items()}
    merges = [[visible(left), visible(right)] for left, right in tokenizer.merges]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = []
    for text, i in special.items():
        added.append(flags | {"id": i, "content": text, "special": True})
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    digits = {"type": "Digits", "individual_digits": True}
    cut = (
        [digits, by_bytes] if isinstance(tokenizer, PretrainedTokenizer) else [by_bytes]
    )
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cut},
        "decoder": by_bytes,
        "model": {"type": "BPE", "vocab": ids | special, "merges": merges},
    }


CHATML = (  # chat_prompt once more, in the language of transformers' templates
    "{% for m in messages %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_for_transformers(model: Decoder, tokenizer, folder: str | Path) -> None:
    """Write a folder that transformers' AutoModelForCausalLM and AutoTokenizer load.

    (load_pretrained does not; it reads what save_model writes.) Raises ValueError if
    the tokenizer has more ids than the model.
    """
    if tokenizer.n_vocab > model.config.vocab_size:
        raise ValueError(
            f"{tokenizer.n_vocab} ids, but {model.config.vocab_size} in the model"
        )
    tensors = to_gpt2(model) if isinstance(model, GPTModel) else to_llama(model)
    special, dtype = tokenizer.special_tokens, str(model.tok_emb.weight.dtype)
    is_chat = "<|im_end|>" in special
    end = "<|im_end|>" if is_chat else END_OF_TEXT  # of a turn, or of a text
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
    about |= {"model_max_length": model.config.context_length}
    settings = {
        "config.json": transformers_config(
            model.config, special[end], dtype.split(".")[1]
        ),
        "tokenizer.json": tokenizers_json(tokenizer),
        "tokenizer_config.json": about | ({"chat_template": CHATML} if is_chat else {}),
    }

    def write(new: Path) -> None:
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
        for name, content in settings.items():
            (new / name).write_text(
                json.dumps(content, ensure_ascii=False), encoding="utf-8"
            )

    write_folder(folder, write)
