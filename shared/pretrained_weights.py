"""Two real language models, SmolLM2 and GPT-2, running in the classes that you wrote, and one of
them answers your questions.

Generated from ch05_pretraining/ch05_pretrained_weights.ipynb by `python -m shared.export`;
edit the notebook, not this file.
"""

import json
import re
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import gguf
import huggingface_hub
import numpy as np
import regex
import tiktoken
import torch
from safetensors.torch import load_file, save_file

from shared.fetch import FetchError, fetch_smollm2
from shared.gpt_model import GPT_CONFIGS, Decoder, GPTConfig, GPTModel
from shared.llama_model import LlamaConfig, LlamaModel, pairs_to_halves
from shared.pretraining import generate, load_model, set_weights, weights_of, write_folder
from shared.text_data import (
    END_OF_TEXT,
    GPT2_PATTERN,
    BPETokenizer,
    Tokenizer,
    apply_merges,
    gpt2_byte_of_character,
    replace_lone_surrogates,
)

__all__ = [
    "GGUF_NAMES", "our_name", "gguf_value", "gguf_config", "gguf_weights", "model_with",
    "load_gguf", "SMOLLM2_PATTERN", "PretrainedTokenizer", "load_gguf_tokenizer",
    "SMOLLM2_SYSTEM", "chat_prompt", "Conversation", "GPT2_NAMES", "QKV", "from_gpt2",
    "load_gpt2", "load_pretrained", "tokenizer_for", "LLAMA_NAMES", "their_name", "to_gpt2",
    "to_llama", "transformers_config", "tokenizers_json", "CHATML", "save_for_transformers",
]  # fmt: skip

GGUF_NAMES = {
    "token_embd": "tok_emb", "output_norm": "final_norm", "output": "out_head",
    "attn_norm": "norm1", "attn_q": "attention.W_query", "attn_k": "attention.W_key",
    "attn_v": "attention.W_value", "attn_output": "attention.out_proj", "ffn_norm": "norm2",
    "ffn_gate": "feed_forward.gate", "ffn_up": "feed_forward.up",
    "ffn_down": "feed_forward.project",
}  # fmt: skip


def our_name(name: str, names: dict[str, str], layers: str) -> str:
    """Return what our models call a tensor of another program; `layers` is its word for blocks."""
    found = re.fullmatch(rf"(?:{layers}\.(\d+)\.)?(.+)\.(weight|bias)", name)
    if not found or found[2] not in names:
        return name
    return (f"blocks.{found[1]}." if found[1] else "") + f"{names[found[2]]}.{found[3]}"


def gguf_value(reader: gguf.GGUFReader, key: str):
    """Return a setting of a GGUF file; ValueError if it is not there."""
    if (field := reader.get_field(key)) is None:
        raise ValueError(f"the file has no setting {key}")
    return field.contents()


def gguf_config(reader: gguf.GGUFReader) -> LlamaConfig:
    """Return the configuration of a Llama-style GGUF file."""
    if (architecture := gguf_value(reader, "general.architecture")) != "llama":
        raise ValueError(f"the architecture {architecture!r} is not supported, only 'llama'")
    sizes = {
        "vocab_size": "vocab_size", "context_length": "context_length",
        "emb_dim": "embedding_length", "n_heads": "attention.head_count",
        "n_kv_heads": "attention.head_count_kv", "n_layers": "block_count",
        "hidden_dim": "feed_forward_length", "rope_base": "rope.freq_base",
    }  # fmt: skip
    settings = {ours: gguf_value(reader, f"llama.{key}") for ours, key in sizes.items()}
    if any(key.startswith("llama.rope.scaling") for key in reader.fields):
        raise ValueError("scaled rotary positions are not supported")
    eps = np.float32(gguf_value(reader, "llama.attention.layer_norm_rms_epsilon"))
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    return LlamaConfig(**settings, norm_eps=float(str(eps)), tie_weights=tied)


def gguf_weights(reader: gguf.GGUFReader) -> dict[str, torch.Tensor]:
    """Return all tensors of a GGUF file as float32, under our names."""
    weights, unsupported = {}, []
    for tensor in reader.tensors:
        try:
            numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            unsupported.append(f"{tensor.name} ({tensor.tensor_type.name})")
            continue
        name = our_name(tensor.name, GGUF_NAMES, "blk")
        weights[name] = torch.from_numpy(np.array(numbers, dtype=np.float32))
    if unsupported:
        raise ValueError(f"tensors of unsupported types: {', '.join(unsupported)}")
    return weights


def model_with(model_class, config, weights: dict[str, torch.Tensor]) -> Decoder:
    """Return a model that takes over the weights; ValueError lists those that do not fit."""
    with torch.device("meta"):
        model = model_class(config)
    set_weights(model, weights, assign=True)
    return model.eval()


def load_gguf(path: str | Path) -> LlamaModel:
    """Return the model in a Llama-style GGUF file, with float32 weights.

    Raises ValueError if it cannot be read, or has another architecture, a type of tensor that
    gguf cannot dequantise, or tensors that are missing, unknown or misshapen (all listed).
    """
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"cannot read {path} as GGUF: {error!r}") from error
    return model_with(LlamaModel, gguf_config(reader), gguf_weights(reader))


SMOLLM2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


class PretrainedTokenizer:
    """Byte-level BPE with a given vocabulary and pattern; a `Tokenizer`.

    `vocab` maps ids to bytes, without special tokens, in the order of `merges`; `special_tokens`
    maps texts to ids. Bytes that the vocabulary lacks are dropped.
    """

    def __init__(self, vocab, merges, special_tokens: dict[str, int], pattern: str):
        self.vocab, self.merges, self.pattern = dict(vocab), list(merges), pattern
        self.special_tokens, self.eot_token = dict(special_tokens), special_tokens[END_OF_TEXT]
        self._ids = {token: i for i, token in self.vocab.items()}
        self._order = {pair: rank for rank, pair in enumerate(self.merges)}
        self._missing = {byte for byte in range(256) if bytes([byte]) not in self._ids}
        parts = {"mergeable_ranks": self._ids, "special_tokens": self.special_tokens}
        self._encoding = tiktoken.Encoding("pretrained", pat_str=pattern, **parts)

    @property
    def n_vocab(self) -> int:
        """The number of ids, special tokens included."""
        return self._encoding.n_vocab

    encode = BPETokenizer.encode  # special tokens first, encode_ordinary for the rest

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of a text, special tokens read as ordinary text."""
        text = replace_lone_surrogates(text)
        if self._missing.isdisjoint(text.encode()):
            return self._encoding.encode_ordinary(text)
        ids = []
        for piece in regex.findall(self.pattern, text):
            kept = bytes(byte for byte in piece.encode() if byte not in self._missing)
            ids += [self._ids[token] for token in apply_merges(kept, self._order)]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self._encoding.decode(ids)


def load_gguf_tokenizer(path: str | Path) -> PretrainedTokenizer:
    """Return the tokenizer in a GGUF file; ValueError if it is not SmolLM2's kind."""
    reader = gguf.GGUFReader(path)
    if (kind := gguf_value(reader, "tokenizer.ggml.pre")) != "smollm":
        raise ValueError(f"the tokenizer kind {kind!r} is not supported, only 'smollm'")
    tokens = gguf_value(reader, "tokenizer.ggml.tokens")
    control = gguf.TokenType.CONTROL
    kinds = gguf_value(reader, "tokenizer.ggml.token_type")
    special = {token: i for i, token in enumerate(tokens) if kinds[i] == control}
    byte_of = gpt2_byte_of_character()

    def as_bytes(token: str) -> bytes:
        return bytes(byte_of[character] for character in token)

    vocab = {i: as_bytes(token) for i, token in enumerate(tokens) if kinds[i] != control}
    pairs = (merge.split(" ") for merge in gguf_value(reader, "tokenizer.ggml.merges"))
    merges = [(as_bytes(left), as_bytes(right)) for left, right in pairs]
    return PretrainedTokenizer(vocab, merges, special, SMOLLM2_PATTERN)


SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chat_prompt(messages: list[dict[str, str]], system: str = SMOLLM2_SYSTEM) -> str:
    """Return a conversation in ChatML, ending where the assistant's answer begins.

    For texts that you trust; Conversation.ids is safe for any. A message has a "role" (system,
    user or assistant) and a "content". Unless the first is a system message, `system` comes first.
    """
    if not messages or messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


class Conversation:
    """A conversation with a chat model; `messages` holds all turns."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, system: str = SMOLLM2_SYSTEM):
        self.model, self.tokenizer = model, tokenizer
        self.messages = [{"role": "system", "content": system}]
        if self.ids()[0] != tokenizer.encode("<|im_start|>", allowed_special="all")[-1]:
            raise ValueError("this model's tokenizer has no <|im_start|>: it is no chat model")

    def ids(self) -> list[int]:
        """Return the prompt's ids. What looks like a special token in a content is plain text."""
        blank = [{"role": message["role"], "content": "\0"} for message in self.messages]
        frame = chat_prompt(blank).split("\0")
        ids = self.tokenizer.encode(frame[0], allowed_special="all")
        for message, after in zip(self.messages, frame[1:], strict=True):
            ids += self.tokenizer.encode_ordinary(message["content"])
            ids += self.tokenizer.encode(after, allowed_special="all")
        return ids

    def reply(self, text: str, max_new_tokens: int = 200, write=None, **sampling) -> str:
        """Say something, and return the answer; a function `write` gets it in pieces as it comes.

        `sampling` is handed to generate. The answer is cut after max_new_tokens, or where the
        context is full. Raises ValueError if the conversation has outgrown the context: begin a
        new one, or drop old messages. After an error or an interrupt, it is as it was before.
        """
        self.messages.append({"role": "user", "content": text})
        end, new, shown = self.tokenizer.encode("<|im_end|>", allowed_special="all")[0], [], 0

        def on_token(ids: torch.Tensor) -> None:
            nonlocal shown
            new.extend(i for i in ids.tolist() if i != end)
            so_far = self.tokenizer.decode(new)
            if write and not so_far.endswith("\ufffd"):  # a character is not yet complete
                write(so_far[shown:])
                shown = len(so_far)

        sampling |= {"stop_token": end, "on_token": on_token}
        try:
            prompt = torch.tensor([self.ids()], device=self.model.tok_emb.weight.device)
            generate(self.model, prompt, max_new_tokens, **sampling)
        except BaseException:  # also an interrupt
            self.messages.pop()
            raise
        answer = self.tokenizer.decode(new)
        if write and shown < len(answer):
            write(answer[shown:])
        self.messages.append({"role": "assistant", "content": answer})
        return answer


GPT2_NAMES = {
    "wte": "tok_emb", "wpe": "pos_emb", "ln_f": "final_norm", "ln_1": "norm1", "ln_2": "norm2",
    "attn.c_attn": "attention.W_qkv", "attn.c_proj": "attention.out_proj",
    "mlp.c_fc": "feed_forward.expand", "mlp.c_proj": "feed_forward.project",
}  # fmt: skip
QKV = ("W_query", "W_key", "W_value")


def from_gpt2(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return GPT-2's weights under our names, from those of transformers' GPT2LMHeadModel."""
    weights = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("transformer.")
        if name == "lm_head.weight" or re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name):
            continue  # the embedding once more; a causal mask
        ours = our_name(name, GPT2_NAMES, "h")
        if ".c_" in name and tensor.ndim == 2:
            tensor = tensor.T  # stored for x @ W
        if "W_qkv" in ours:
            for part, third in zip(QKV, tensor.chunk(3), strict=True):
                weights[ours.replace("W_qkv", part)] = third.contiguous()
        else:
            weights[ours] = tensor.contiguous()
    return weights


def load_gpt2(size: str = "124M", *, download: bool = True) -> GPTModel:
    """Return GPT-2 with OpenAI's weights: 124M, 355M, 774M or 1558M, from Hugging Face.

    Downloads 0.5 to 6.4 GB once, into Hugging Face's cache, if `download` allows it. Raises
    ValueError for another size, FetchError if the weights are not there and cannot be brought.
    """
    repositories = {"124M": "gpt2", "355M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl"}
    if size not in repositories:
        raise ValueError(f"GPT-2 comes in {', '.join(repositories)}, not {size!r}")
    repository = f"openai-community/{repositories[size]}"
    bring = partial(huggingface_hub.hf_hub_download, repository, "model.safetensors")
    try:
        path = bring(local_files_only=True)
    except huggingface_hub.errors.LocalEntryNotFoundError:
        try:
            if not download:
                raise ConnectionError("no download was wanted")
            urlopen("https://huggingface.co", timeout=10).close()  # else it retries for long
            path = bring()
        except Exception as error:  # of many types
            advice = "connect and run again, or take 'smollm2-135m'"
            raise FetchError(f"{repository} is not here: {error}; {advice}") from error
    return model_with(GPTModel, GPT_CONFIGS[size], from_gpt2(load_file(path)))


def load_pretrained(name: str | Path = "smollm2-135m") -> Decoder:
    """Return a model in evaluation mode: "smollm2-135m", "gpt2-124m" (-355m, -774m, -1558m),
    or a folder that save_model has written.

    Raises ValueError for an unknown name, FetchError if it has to be downloaded and cannot be.
    """
    if Path(name).is_dir():
        return load_model(name).eval()
    if str(name) == "smollm2-135m":
        return load_gguf(fetch_smollm2())
    if str(name).startswith("gpt2-"):
        return load_gpt2(str(name).removeprefix("gpt2-").upper())
    known = "smollm2-135m, gpt2-124m (355m, …) or a folder"
    raise ValueError(f"no model {str(name)!r}: {known} (there is no {Path(name).resolve()})")


def tokenizer_for(name: str | Path = "smollm2-135m") -> Tokenizer:
    """Return the tokenizer that belongs to load_pretrained(name)."""
    if str(name) == "smollm2-135m":
        return load_gguf_tokenizer(fetch_smollm2())
    if Path(name).is_dir():
        return BPETokenizer.load(Path(name) / "tokenizer.json")
    if str(name).startswith("gpt2-"):
        return BPETokenizer.from_gpt2_files()
    raise ValueError(f"no tokenizer for {str(name)!r}: it is neither a known name nor a folder")


LLAMA_NAMES = {
    "embed_tokens": "tok_emb", "norm": "final_norm", "input_layernorm": "norm1",
    "self_attn.q_proj": "attention.W_query", "self_attn.k_proj": "attention.W_key",
    "self_attn.v_proj": "attention.W_value", "self_attn.o_proj": "attention.out_proj",
    "post_attention_layernorm": "norm2", "mlp.gate_proj": "feed_forward.gate",
    "mlp.up_proj": "feed_forward.up", "mlp.down_proj": "feed_forward.project",
}  # fmt: skip


def their_name(name: str, names: dict[str, str], layers: str, prefix: str) -> str:
    """Return what transformers calls our tensor: the inverse of our_name, after a prefix."""
    if name == "out_head.weight":
        return "lm_head.weight"
    block, part, kind = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)", name).groups()
    theirs = {ours: theirs for theirs, ours in names.items()}[part]
    return prefix + (f"{layers}.{block}." if block else "") + f"{theirs}.{kind}"


def to_gpt2(model: GPTModel) -> dict[str, torch.Tensor]:
    """Return the weights under the names of transformers' GPT2LMHeadModel."""
    state, tensors, D = weights_of(model), {}, model.config.emb_dim
    for name, tensor in state.items():
        if "W_key" in name or "W_value" in name:
            continue  # they go with the query
        if "W_query" in name:
            tensor = torch.cat([state[name.replace("W_query", part)] for part in QKV])
            name = name.replace("W_query", "W_qkv")
        theirs = their_name(name, GPT2_NAMES, "h", "transformer.")
        is_product = ".c_" in theirs and tensor.ndim == 2
        tensors[theirs] = tensor.T if is_product else tensor
    for i in range(model.config.n_layers):  # transformers' GPT-2 always has this bias
        name = f"transformer.h.{i}.attn.c_attn.bias"
        tensors.setdefault(name, tensors["transformer.wte.weight"].new_zeros(3 * D))
    return tensors


def to_llama(model: LlamaModel) -> dict[str, torch.Tensor]:
    """Return the weights under the names of transformers' LlamaForCausalLM."""
    tensors = {}
    for name, tensor in weights_of(model).items():
        if "W_query" in name or "W_key" in name:
            tensor = pairs_to_halves(tensor, tensor.shape[0] // model.config.head_dim)
        tensors[their_name(name, LLAMA_NAMES, "layers", "model.")] = tensor
    return tensors


def transformers_config(config: GPTConfig | LlamaConfig, end: int, dtype: str) -> dict:
    """Return config.json for transformers; `end` is the id that ends a text."""
    common = {
        "vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_weights,
        "bos_token_id": end, "eos_token_id": end, "dtype": dtype,
    }  # fmt: skip
    if isinstance(config, GPTConfig):
        return common | {
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
            "n_positions": config.context_length, "n_embd": config.emb_dim,
            "n_head": config.n_heads, "n_layer": config.n_layers,
            "resid_pdrop": config.drop_rate, "embd_pdrop": config.drop_rate,
            "attn_pdrop": config.drop_rate,
        }  # fmt: skip
    return common | {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": config.context_length, "hidden_size": config.emb_dim,
        "intermediate_size": config.hidden_dim, "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads, "num_hidden_layers": config.n_layers,
        "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
    }  # fmt: skip


def tokenizers_json(tokenizer: BPETokenizer | PretrainedTokenizer) -> dict:
    """Return tokenizer.json for Hugging Face's tokenizers, as a dictionary."""
    character_of = {byte: character for character, byte in gpt2_byte_of_character().items()}

    def visible(token: bytes) -> str:
        return "".join(character_of[byte] for byte in token)

    special = tokenizer.special_tokens
    ids = {visible(t): i for i, t in tokenizer.vocab.items() if i not in special.values()}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    cut = [by_bytes | {"use_regex": True}]
    if getattr(tokenizer, "pattern", GPT2_PATTERN) == SMOLLM2_PATTERN:
        cut.insert(0, {"type": "Digits", "individual_digits": True})
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": text, "special": True} | flags for text, i in special.items()
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cut},
        "decoder": by_bytes | {"use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": ids | special,
            "merges": [[visible(left), visible(right)] for left, right in tokenizer.merges],
        },
    }


CHATML = (  # chat_prompt once more, in the language of transformers' templates
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_for_transformers(model: Decoder, tokenizer, folder: str | Path) -> None:
    """Write a folder that transformers' AutoModelForCausalLM and AutoTokenizer load.

    (load_pretrained does not; it reads what save_model writes.) Raises ValueError if the tokenizer
    has more ids than the model.
    """
    if tokenizer.n_vocab > model.config.vocab_size:
        raise ValueError(f"{tokenizer.n_vocab} ids, but {model.config.vocab_size} in the model")
    is_gpt = isinstance(model, GPTModel)
    tensors = to_gpt2(model) if is_gpt else to_llama(model)
    special, dtype = tokenizer.special_tokens, str(model.tok_emb.weight.dtype)
    end = "<|im_end|>" if "<|im_end|>" in special else END_OF_TEXT  # of a turn, or of a text
    settings = {
        "config.json": transformers_config(model.config, special[end], dtype.split(".")[1]),
        "tokenizer.json": tokenizers_json(tokenizer),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": end,
            "model_max_length": model.config.context_length,
        },
    }
    if "<|im_start|>" in special:
        settings["tokenizer_config.json"]["chat_template"] = CHATML

    def write(new: Path) -> None:
        tensors_now = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors_now, new / "model.safetensors", metadata={"format": "pt"})
        for name, content in settings.items():
            (new / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    write_folder(folder, write)
