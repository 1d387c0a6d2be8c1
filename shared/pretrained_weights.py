"""A real language model runs in the class that you wrote and answers your question; and
the model that you trained yourself leaves the course, for llama.cpp, Ollama or
Transformers.

Generated from ch05_pretraining/ch05_pretrained_weights.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import numpy as np
import torch

from shared.gpt_model import GPT_CONFIGS, Decoder, GPTConfig, GPTModel
from shared.llama_model import LlamaConfig, LlamaModel, halves_to_pairs, pairs_to_halves
from shared.pretraining import load_model, model_with, stream
from shared.support import existing, files, read_json
from shared.support.fetch import FetchError, fetch_smollm2, what_helps
from shared.support.files import read_tensors, require_plain, weights_of
from shared.text_data import GPT2_PATTERN, Tokenizer
from shared.tokenizer import BPETokenizer, bytes_of, gpt2_byte_of_character

__all__ = [
    "load_gguf", "SYSTEM", "chat_prompt", "fill_frame", "end_token", "Conversation",
    "load_llama", "REPOSITORIES", "load_pretrained", "CHATML", "save_gguf",
    "to_llama", "to_gpt2",
]  # fmt: skip

# Section 5.11: Loading weights: whose name is whose?
LLAMA_IN_GGUF = {
    "token_embd": "tok_emb", "output_norm": "final_norm", "output": "out_head",
    "attn_norm": "norm1", "attn_q": "attention.W_query", "attn_k": "attention.W_key",
    "attn_v": "attention.W_value", "attn_output": "attention.out_proj",
    "ffn_norm": "norm2", "ffn_gate": "feed_forward.gate", "ffn_up": "feed_forward.up",
    "ffn_down": "feed_forward.project",
}  # fmt: skip
GPT2_IN_GGUF = LLAMA_IN_GGUF | {
    "position_embd": "pos_emb", "attn_qkv": "attention.W_qkv",
    "ffn_up": "feed_forward.expand",
}  # fmt: skip
GGUF_NAMES = {"llama": LLAMA_IN_GGUF, "gpt2": GPT2_IN_GGUF}


def rename(name: str, names: dict[str, str], old: str, new: str) -> str:
    """Return what another program calls a tensor.

    `old` and `new` are the two words for "blocks".
    """
    found = re.fullmatch(rf"(?:{old}\.(\d+)\.)?(.+)\.(weight|bias)", name)
    if not found or found[2] not in names:
        return name
    block = f"{new}.{found[1]}." if found[1] else ""
    return f"{block}{names[found[2]]}.{found[3]}"


@contextmanager
def open_gguf(path: str | Path) -> Iterator[tuple[dict, list[gguf.ReaderTensor]]]:
    """Give the settings (a dictionary) and the tensors of a GGUF file, in a `with`.

    Whatever is wrong with the file, there or inside the `with`, becomes a ValueError
    that begins with its path; FileNotFoundError if it is missing.
    """
    existing(path)
    try:
        reader = gguf.GGUFReader(path)
        settings = {key: field.contents() for key, field in reader.fields.items()}
        yield settings, reader.tensors
    except (OSError, ValueError, LookupError, NotImplementedError) as error:
        raise ValueError(f"{path} cannot be read as GGUF: {error!r}") from error


GPT2_SIZES = {
    "vocab_size": "vocab_size", "context_length": "context_length",
    "emb_dim": "embedding_length", "n_heads": "attention.head_count",
    "n_layers": "block_count",
}  # fmt: skip
LLAMA_SIZES = GPT2_SIZES | {
    "n_kv_heads": "attention.head_count_kv", "hidden_dim": "feed_forward_length",
    "rope_base": "rope.freq_base", "norm_eps": "attention.layer_norm_rms_epsilon",
}  # fmt: skip


def gguf_config(settings: dict, tensors: list[gguf.ReaderTensor]) -> Any:
    """Return the LlamaConfig or GPTConfig of a GGUF file.

    Raises ValueError for another architecture, and, naming its key, for a setting that
    would change the arithmetic and that our model does not have.
    """
    if (kind := settings["general.architecture"]) not in GGUF_NAMES:
        raise ValueError(f"the architecture is {kind!r}, not one of {[*GGUF_NAMES]}")
    settings = {  # what a file may leave out
        f"{kind}.vocab_size": len(settings["tokenizer.ggml.tokens"]),
        f"{kind}.attention.head_count_kv": settings[f"{kind}.attention.head_count"],
        f"{kind}.rope.freq_base": 10_000.0,
    } | settings
    sizes = LLAMA_SIZES if kind == "llama" else GPT2_SIZES
    rest = {ours: settings[f"{kind}.{key}"] for ours, key in sizes.items()}
    rest["tie_weights"] = all(tensor.name != "output.weight" for tensor in tensors)
    if kind == "gpt2":
        config: Any = GPTConfig(**rest, qkv_bias=True)
    else:  # 1e-5 comes back as 9.999999747e-06, unless read as the float32 that it is
        rest["norm_eps"] = float(str(np.float32(rest["norm_eps"])))
        config = LlamaConfig(**rest)
    files.refuse_gguf_settings(settings, config.head_dim, set(LLAMA_SIZES.values()))
    return config


QKV = ("query", "key", "value")


def split_qkv(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a tensor by name, or three, if it has queries, keys and values in one."""
    parts = [name.replace("qkv", part) for part in QKV] if "qkv" in name else [name]
    cut = [part.contiguous() for part in tensor.chunk(len(parts))]
    return dict(zip(parts, cut, strict=True))


def gguf_weights(
    tensors: list[gguf.ReaderTensor], names: dict[str, str] = LLAMA_IN_GGUF
) -> dict[str, torch.Tensor]:
    """Return the tensors of a GGUF file as float32, under our names."""
    weights: dict[str, torch.Tensor] = {}
    for tensor in tensors:
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        name = rename(tensor.name, names, "blk", "blocks")
        weights |= split_qkv(name, torch.tensor(numbers, dtype=torch.float32))
    return weights


# Section 5.12: The tokenizer in the file: which ids does it know?
ONE_DIGIT = GPT2_PATTERN.replace(r" ?\p{N}+", r"\p{N}")
SMOLLM2_PATTERN = ONE_DIGIT.replace(r"(?!\S)", r"(?![^\s\p{N}])")
PRE_TOKENIZERS = {"smollm": SMOLLM2_PATTERN, "gpt-2": GPT2_PATTERN}


def make_tokenizer(
    tokens: dict[int, str], special: dict[str, int], pairs: list, pattern: str
) -> BPETokenizer:
    """Return the tokenizer of tables in GPT-2's alphabet.

    `pairs` are the merges, each as two texts, or as one with a space between them.
    """
    vocab = {i: t.encode() if t in special else bytes_of(t) for i, t in tokens.items()}
    split = [p.split(" ") if isinstance(p, str) else p for p in pairs]
    merges = [(bytes_of(left), bytes_of(right)) for left, right in split]
    return BPETokenizer(vocab, merges, special, pattern)


def gguf_tokenizer(settings: dict) -> BPETokenizer:
    """Return the tokenizer in a GGUF file; ValueError if we do not know its pattern."""
    if (kind := settings["tokenizer.ggml.pre"]) not in PRE_TOKENIZERS:
        raise ValueError(f"the tokenizer is {kind!r}, not one of {[*PRE_TOKENIZERS]}")
    tokens = dict(enumerate(settings["tokenizer.ggml.tokens"]))
    kinds = settings["tokenizer.ggml.token_type"]
    if gguf.TokenType.USER_DEFINED in kinds:
        raise ValueError("tokens that a user defined are not supported")
    special = {t: i for i, t in tokens.items() if kinds[i] == gguf.TokenType.CONTROL}
    pairs = settings["tokenizer.ggml.merges"]
    return make_tokenizer(tokens, special, pairs, PRE_TOKENIZERS[kind])


def load_gguf(path: str | Path) -> tuple[Decoder, BPETokenizer]:
    """Return the model in a GGUF file, in float32, and its tokenizer.

    It is a LlamaModel or a GPTModel. Raises FileNotFoundError if there is no file, and
    ValueError if it cannot be read, or has another architecture or tokenizer, a type of
    tensor that gguf cannot dequantize, or tensors that are missing, unknown or
    misshapen (all listed).
    """
    with open_gguf(path) as (settings, tensors):
        config = gguf_config(settings, tensors)
        tokenizer = gguf_tokenizer(settings)
        weights = gguf_weights(tensors, GGUF_NAMES[settings["general.architecture"]])
        kind = LlamaModel if isinstance(config, LlamaConfig) else GPTModel
        return model_with(kind, config, weights), tokenizer


# Section 5.13: Chat templates: how do you talk to it?
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chat_prompt(messages: list[dict[str, str]], system: str = SYSTEM) -> str:
    """Return a conversation in ChatML, ending where the assistant's answer begins.

    For texts that you trust; Conversation.token_ids is safe for any. A message has a
    "role" (system, user or assistant) and a "content". Unless the first is a system
    message, `system` comes first.
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
    token_ids = tokenizer.encode(first, allowed_special="all")
    for text, after in zip(texts, rest, strict=True):
        token_ids += tokenizer.encode_ordinary(text)
        token_ids += tokenizer.encode(after, allowed_special="all")
    return token_ids


def end_token(tokenizer: Tokenizer) -> int:
    """Return the id that ends an answer: that of <|im_end|>, else the end of text."""
    token_ids = tokenizer.encode("<|im_end|>", allowed_special="all")
    return token_ids[0] if len(token_ids) == 1 else tokenizer.eot_token


class Conversation:
    """A conversation with a chat model; `messages` holds all turns.

    Raises ValueError if the model's tokenizer has no <|im_start|>.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, system: str = SYSTEM):
        self.model = model
        self.tokenizer = tokenizer
        self.messages = [{"role": "system", "content": system}]
        if len(tokenizer.encode("<|im_start|>", allowed_special="all")) != 1:
            raise ValueError("no chat model: its tokenizer has no <|im_start|>")

    def token_ids(self, *more: dict[str, str]) -> list[int]:
        """Return the prompt's ids, after `more` messages.

        Special tokens in the messages are plain text.
        """
        messages = [*self.messages, *more]
        frame = chat_prompt([message | {"content": "\0"} for message in messages])
        return fill_frame(frame, [m["content"] for m in messages], self.tokenizer)

    def reply(self, text: str, max_new_tokens: int = 200, **sampling) -> Iterator[str]:
        """Say something; yield the answer in pieces, as they come.

        `sampling` is handed to stream. The answer is cut after max_new_tokens, or where
        the context is full; of a conversation that is longer than the context, the
        model reads the last tokens, with a warning. Question and answer are in
        `messages` once all pieces have been taken; before that, all is as it was.
        """
        question = {"role": "user", "content": text}
        prompt = torch.tensor([self.token_ids(question)], device=self.model.device)
        end = end_token(self.tokenizer)
        steps = stream(self.model, prompt, max_new_tokens, stop_token=end, **sampling)
        new: list[int] = []
        shown = ""
        for token_ids in steps:
            new += [i for i in token_ids.tolist() if i != end]
            answer = self.tokenizer.decode(new)
            if not answer.endswith("\ufffd"):  # else a character is not yet complete
                yield answer[len(shown) :]
                shown = answer
        answer = self.tokenizer.decode(new)
        yield answer[len(shown) :]
        self.messages += [question, {"role": "assistant", "content": answer}]


# Section 5.14: Weights from Hugging Face: GPT-2 and the larger SmolLM2
GPT2_NAMES = {
    "transformer.wte": "tok_emb", "transformer.wpe": "pos_emb", "lm_head": "out_head",
    "transformer.ln_f": "final_norm", "ln_1": "norm1", "ln_2": "norm2",
    "attn.c_attn": "attention.W_qkv", "attn.c_proj": "attention.out_proj",
    "mlp.c_fc": "feed_forward.expand", "mlp.c_proj": "feed_forward.project",
}  # fmt: skip


def from_gpt2(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return GPT-2's weights under our names, from those of transformers' model.

    A head that is the embedding once more is left out.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(("lm_head.weight", ".attn.bias", ".attn.masked_bias")):
            continue  # see below; a causal mask
        if ".c_" in name and tensor.ndim == 2:
            tensor = tensor.T  # stored for x @ W
        name = "transformer." + name.removeprefix("transformer.")  # some leave it out
        ours = rename(name, GPT2_NAMES, "transformer.h", "blocks")
        weights |= split_qkv(ours, tensor)
    head = tensors.get("lm_head.weight")
    if head is not None and not torch.equal(head, weights.get("tok_emb.weight", head)):
        weights["out_head.weight"] = head  # else it is the embedding once more
    return weights


LLAMA_NAMES = {
    "tok_emb": "model.embed_tokens", "final_norm": "model.norm",
    "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
    "attention.W_query": "self_attn.q_proj", "attention.W_key": "self_attn.k_proj",
    "attention.W_value": "self_attn.v_proj", "attention.out_proj": "self_attn.o_proj",
    "feed_forward.gate": "mlp.gate_proj", "feed_forward.up": "mlp.up_proj",
    "feed_forward.project": "mlp.down_proj", "out_head": "lm_head",
}  # fmt: skip


def from_llama(
    tensors: dict[str, torch.Tensor], config: LlamaConfig
) -> dict[str, torch.Tensor]:
    """Return weights of transformers' LlamaForCausalLM as float32, under our names."""
    names = {theirs: ours for ours, theirs in LLAMA_NAMES.items()}
    weights = {}
    for name, tensor in tensors.items():
        if "q_proj" in name or "k_proj" in name:
            tensor = halves_to_pairs(tensor, tensor.shape[0] // config.head_dim)
        weights[rename(name, names, "model.layers", "blocks")] = tensor.float()
    if config.tie_weights:
        weights.pop("out_head.weight", None)  # the embedding once more
    return weights


LLAMA_JSON = {
    "vocab_size": "vocab_size", "context_length": "max_position_embeddings",
    "emb_dim": "hidden_size", "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers", "n_kv_heads": "num_key_value_heads",
    "hidden_dim": "intermediate_size", "rope_base": "rope_theta",
    "norm_eps": "rms_norm_eps", "tie_weights": "tie_word_embeddings",
}  # fmt: skip


def llama_config(settings: dict) -> LlamaConfig:
    """Return the configuration in a config.json; ValueError if it is no such Llama."""
    settings = {"tie_word_embeddings": False} | settings
    settings |= settings.get("rope_parameters") or {}  # since version 5
    config = LlamaConfig(**{ours: settings[key] for ours, key in LLAMA_JSON.items()})
    ours: dict[str, Any] = {"model_type": "llama", "hidden_act": "silu"}
    ours |= {"head_dim": config.head_dim, "rope_scaling": None, "rope_type": "default"}
    ours |= dict.fromkeys(("attention_bias", "mlp_bias", "rope_interleaved"), False)
    for key, value in ours.items():
        if settings.get(key, value) != value:
            raise ValueError(f"{key} is {settings[key]!r}, not {value!r} as in ours")
    return config


def json_tokenizer(file: dict) -> BPETokenizer:
    """Return the tokenizer in a tokenizer.json; ValueError if we cannot cut as it."""
    cut, last = file["pre_tokenizer"]["pretokenizers"]
    pattern = SMOLLM2_PATTERN if cut["type"] == "Digits" else cut["pattern"]["Regex"]
    if pattern not in PRE_TOKENIZERS.values() or last["type"] != "ByteLevel":
        raise ValueError(f"the tokenizer cuts by {cut}, which is none of ours")
    special = {token["content"]: token["id"] for token in file["added_tokens"]}
    ids = file["model"]["vocab"] | special
    tokens = dict(sorted((i, token) for token, i in ids.items()))
    return make_tokenizer(tokens, special, file["model"]["merges"], pattern)


def bring(repository: str, *names: str) -> Path:
    """Return the folder in Hugging Face's cache with these files, downloaded once.

    Raises FetchError, with advice, if they cannot be brought.
    """
    try:
        paths = [huggingface_hub.hf_hub_download(repository, name) for name in names]
    except Exception as error:  # of many types
        reason = error.__cause__ or error
        advice = f"could not be brought: {reason}; run again {what_helps(reason)}"
        raise FetchError(f"{repository} {advice}") from error
    return Path(paths[0]).parent


def load_llama(folder: str | Path) -> tuple[Decoder, BPETokenizer]:
    """Return the model in a folder of Hugging Face's, in float32, and its tokenizer.

    The folder has config.json, tokenizer.json, and the weights in one or several
    safetensors files. Raises FileNotFoundError or ValueError, which name a file or the
    folder, for what is missing, damaged, or not of a kind that ours can be.
    """
    folder = Path(folder)
    settings = read_json(folder / "config.json")
    tables = read_json(folder / "tokenizer.json")
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= read_tensors(path)
    try:
        config, tokenizer = llama_config(settings), json_tokenizer(tables)
        return model_with(LlamaModel, config, from_llama(tensors, config)), tokenizer
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder} holds no Llama like ours: {error}") from error


REPOSITORIES = {  # on Hugging Face
    "gpt2-124m": "openai-community/gpt2", "gpt2-355m": "openai-community/gpt2-medium",
    "gpt2-774m": "openai-community/gpt2-large",
    "gpt2-1558m": "openai-community/gpt2-xl",
    "smollm2-135m-unrounded": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2-135m-base": "HuggingFaceTB/SmolLM2-135M",
    "smollm2-360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smollm2-360m-base": "HuggingFaceTB/SmolLM2-360M",
    "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "smollm2-1.7b-base": "HuggingFaceTB/SmolLM2-1.7B",
}  # fmt: skip


def load_pretrained(name: str | Path = "smollm2-135m") -> tuple[Decoder, BPETokenizer]:
    """Return a model in evaluation mode, in float32, and its tokenizer.

    The name is "smollm2-135m", one of REPOSITORIES, or a folder that save_model has
    written ("./smollm2-135m" is a folder of that name). Raises ValueError for an
    unknown name, FetchError if it has to be downloaded and cannot be,
    FileNotFoundError for a folder with a file missing.
    """
    if name == "smollm2-135m":
        return load_gguf(fetch_smollm2())
    if name in REPOSITORIES:  # a Path is not: it is always a folder
        name = str(name)
        if name.startswith("smollm2"):
            wanted = ("config.json", "tokenizer.json", "model.safetensors")
            return load_llama(bring(REPOSITORIES[name], *wanted))
        folder = bring(REPOSITORIES[name], "model.safetensors")
        weights = from_gpt2(read_tensors(folder / "model.safetensors"))
        config = GPT_CONFIGS[name.removeprefix("gpt2-").upper()]
        return model_with(GPTModel, config, weights), BPETokenizer.from_gpt2_files()
    if Path(name).is_dir():
        return load_model(name)
    names = ["smollm2-135m", *REPOSITORIES]
    raise ValueError(f"no model {name}, only {names} and folders")


# Section 5.15: Models out: GGUF for llama.cpp and Ollama, safetensors for Transformers
def write_gguf(
    file: str | Path, kind: str, settings: dict, tensors: dict[str, torch.Tensor]
) -> None:
    """Write a GGUF file, in float32, beside its place; then move it there."""
    with tempfile.TemporaryDirectory(dir=Path(file).parent) as folder:
        writer = gguf.GGUFWriter(Path(folder) / "new", kind)
        for key, value in settings.items():
            its_type = gguf.GGUFValueType.get_type(value)
            whole = gguf.GGUFValueType.UINT32  # as llama.cpp expects
            writer.add_key_value(key, value, whole if type(value) is int else its_type)
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.float().cpu().contiguous().numpy())
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            os.replace(Path(folder) / "new", file)
        except OSError as error:  # such as a full disk
            raise OSError(f"{file} could not be written: {error}") from error


CHARACTER_OF = {byte: char for char, byte in gpt2_byte_of_character().items()}


def visible(token: bytes) -> str:
    """Return a token in GPT-2's alphabet: bytes_of backwards."""
    return "".join(CHARACTER_OF[byte] for byte in token)


def gguf_tokenizer_settings(tokenizer: BPETokenizer) -> dict[str, Any]:
    """Return a tokenizer, and its chat template if it has one, as GGUF's settings.

    Raises ValueError for a pattern that llama.cpp has no name for.
    """
    names = [n for n, known in PRE_TOKENIZERS.items() if known == tokenizer.pattern]
    if not names:
        raise ValueError(f"llama.cpp has no name for the pattern {tokenizer.pattern}")
    special = {i: text for text, i in tokenizer.special_tokens.items()}
    tokens = [(i, tokenizer.vocab[i]) for i in range(tokenizer.n_vocab)]
    end = end_token(tokenizer)
    settings = {
        "model": "gpt2", "pre": names[0], "add_bos_token": False,
        "tokens": [special.get(i) or visible(token) for i, token in tokens],
        "token_type": [3 if i in special else 1 for i, _ in tokens],
        "merges": [" ".join(map(visible, pair)) for pair in tokenizer.merges],
        "bos_token_id": tokenizer.special_tokens.get("<|im_start|>", end),
        "eos_token_id": end, "padding_token_id": end,
    }  # fmt: skip
    settings = {f"tokenizer.ggml.{key}": value for key, value in settings.items()}
    if tokenizer.special_tokens.keys() >= {"<|im_start|>", "<|im_end|>"}:
        settings["tokenizer.chat_template"] = CHATML
    return settings


def join_qkv(model: GPTModel) -> dict[str, torch.Tensor]:
    """Return a GPT's weights, queries, keys and values in one, biases included."""
    weights = weights_of(model)
    zeros = torch.zeros_like(weights["final_norm.bias"])
    for i in range(model.config.n_layers):
        block = f"blocks.{i}.attention"
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"{block}.W_{part}.{kind}", zeros) for part in QKV]
            weights[f"{block}.W_qkv.{kind}"] = torch.cat(parts)
    return weights


CHATML = (
    "{% if not messages or messages[0]['role'] != 'system' %}<|im_start|>system\n"
    + SYSTEM
    + "<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_gguf(model: Decoder, tokenizer: BPETokenizer, file: str | Path) -> None:
    """Write a GGUF file, in float32, for llama.cpp and Ollama (0.30 or newer).

    load_gguf reads it, too. The file is written as a whole or not at all. Raises
    ValueError if the tokenizer has more or fewer ids than the model, or a pattern that
    llama.cpp does not know, and for a model with adapters (merge them first); TypeError
    for a classifier; OSError, with the path, if the disk is full.
    """
    require_plain(model)
    config: Any = model.config
    if tokenizer.n_vocab != config.vocab_size:
        raise ValueError(f"{tokenizer.n_vocab} ids, {config.vocab_size} in the model")
    kind, sizes, weights = "llama", LLAMA_SIZES, weights_of(model)
    if isinstance(model, GPTModel):
        kind, sizes, weights = "gpt2", GPT2_SIZES, join_qkv(model)
    own = {theirs: getattr(config, ours) for ours, theirs in sizes.items()}
    if kind == "llama":
        own["rope.freq_base"] = float(config.rope_base)  # somebody may write 10000
    else:
        own["feed_forward_length"] = 4 * config.emb_dim
        own["attention.layer_norm_epsilon"] = 1e-5
    settings: dict[str, Any] = {f"{kind}.{key}": value for key, value in own.items()}
    settings |= {"general.name": Path(file).stem} | gguf_tokenizer_settings(tokenizer)
    names = {ours: theirs for theirs, ours in GGUF_NAMES[kind].items()}
    tensors = {rename(n, names, "blocks", "blk"): t for n, t in weights.items()}
    write_gguf(file, kind, settings, tensors)


def to_llama(model: LlamaModel) -> dict[str, torch.Tensor]:
    """Return the weights under the names of transformers' LlamaForCausalLM."""
    require_plain(model)
    tensors = {}
    for name, tensor in weights_of(model).items():
        if "W_query" in name or "W_key" in name:
            tensor = pairs_to_halves(tensor, tensor.shape[0] // model.config.head_dim)
        tensors[rename(name, LLAMA_NAMES, "blocks", "model.layers")] = tensor
    return tensors


def to_gpt2(model: GPTModel) -> dict[str, torch.Tensor]:
    """Return the weights under the names of transformers' GPT2LMHeadModel."""
    require_plain(model)
    names = {ours: theirs for theirs, ours in GPT2_NAMES.items()}
    tensors = {}
    for name, tensor in join_qkv(model).items():
        theirs = rename(name, names, "blocks", "transformer.h")
        if ".c_" in theirs and tensor.ndim == 2:
            tensor = tensor.T  # they compute x @ W
        tensors[theirs] = tensor.contiguous()
    return tensors
