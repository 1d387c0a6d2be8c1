"""Two real language models, SmolLM2 and GPT-2, running in the classes that you wrote,
and one of them answers your questions.

Generated from ch05_pretraining/ch05_pretrained_weights.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import huggingface_hub
import numpy as np
import torch

from shared.gpt_model import GPT_CONFIGS, Decoder, GPTModel
from shared.llama_model import LlamaConfig, LlamaModel, pairs_to_halves
from shared.pretraining import load_model, model_with, stream
from shared.support import existing
from shared.support.fetch import FetchError, fetch_smollm2, what_helps
from shared.support.files import (
    read_tensors,
    refuse_gguf_settings,
    require_plain,
    weights_of,
)
from shared.text_data import Tokenizer
from shared.tokenizer import BPETokenizer, bytes_of

__all__ = [
    "load_gguf", "chat_prompt", "fill_frame", "end_token", "Conversation",
    "load_gpt2", "load_pretrained", "to_llama", "to_gpt2", "CHATML",
]  # fmt: skip

# Section 5.11: Whose name is whose?
GGUF_NAMES = {
    "token_embd": "tok_emb", "output_norm": "final_norm", "output": "out_head",
    "attn_norm": "norm1", "attn_q": "attention.W_query", "attn_k": "attention.W_key",
    "attn_v": "attention.W_value", "attn_output": "attention.out_proj",
    "ffn_norm": "norm2", "ffn_gate": "feed_forward.gate", "ffn_up": "feed_forward.up",
    "ffn_down": "feed_forward.project",
}  # fmt: skip


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


def gguf_config(settings: dict, tensors: list[gguf.ReaderTensor]) -> LlamaConfig:
    """Return the configuration of a Llama-style GGUF file.

    Raises ValueError for another architecture, and, naming its key, for a setting that
    would change the arithmetic and that LlamaModel does not have.
    """
    if (kind := settings["general.architecture"]) != "llama":
        raise ValueError(f"the architecture is {kind!r}; only 'llama' is supported")
    settings = {  # what a file may leave out
        "llama.vocab_size": len(settings["tokenizer.ggml.tokens"]),
        "llama.attention.head_count_kv": settings["llama.attention.head_count"],
        "llama.rope.freq_base": 10_000.0,
    } | settings
    sizes = {
        "vocab_size": "vocab_size", "context_length": "context_length",
        "emb_dim": "embedding_length", "n_heads": "attention.head_count",
        "n_kv_heads": "attention.head_count_kv", "n_layers": "block_count",
        "hidden_dim": "feed_forward_length", "rope_base": "rope.freq_base",
        "norm_eps": "attention.layer_norm_rms_epsilon",
    }  # fmt: skip
    rest = {ours: settings[f"llama.{key}"] for ours, key in sizes.items()}
    # Stored as float32: 1e-5 comes back as 9.999999747e-06, unless read as float32.
    rest["norm_eps"] = float(str(np.float32(rest["norm_eps"])))
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    config = LlamaConfig(**rest, tie_weights=tied)
    refuse_gguf_settings(settings, config.head_dim, known=set(sizes.values()))
    return config


def gguf_weights(tensors: list[gguf.ReaderTensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a GGUF file as float32, under our names."""
    weights = {}
    for tensor in tensors:
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        name = rename(tensor.name, GGUF_NAMES, "blk", "blocks")
        weights[name] = torch.from_numpy(np.array(numbers, dtype=np.float32))
    return weights


# Section 5.12: Which ids does it know?
SMOLLM2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
)


def gguf_tokenizer(settings: dict) -> BPETokenizer:
    """Return the tokenizer in a GGUF file; ValueError if it is not SmolLM2's kind."""
    if (kind := settings["tokenizer.ggml.pre"]) != "smollm":
        raise ValueError(f"the tokenizer is {kind!r}; only 'smollm' is supported")
    tokens = dict(enumerate(settings["tokenizer.ggml.tokens"]))
    kinds = settings["tokenizer.ggml.token_type"]
    if gguf.TokenType.USER_DEFINED in kinds:
        raise ValueError("tokens that a user defined are not supported")
    special = {t: i for i, t in tokens.items() if kinds[i] == gguf.TokenType.CONTROL}
    vocab = {i: t.encode() if t in special else bytes_of(t) for i, t in tokens.items()}
    pairs = [pair.split(" ") for pair in settings["tokenizer.ggml.merges"]]
    merges = [(bytes_of(left), bytes_of(right)) for left, right in pairs]
    return BPETokenizer(vocab, merges, special, SMOLLM2_PATTERN)


def load_gguf(path: str | Path) -> tuple[Decoder, BPETokenizer]:
    """Return the model in a Llama-style GGUF file, in float32, and its tokenizer.

    Raises FileNotFoundError if there is none, and ValueError if it cannot be read, or
    has another architecture or tokenizer, a type of tensor that gguf cannot dequantise,
    or tensors that are missing, unknown or misshapen (all listed).
    """
    with open_gguf(path) as (settings, tensors):
        config = gguf_config(settings, tensors)
        tokenizer = gguf_tokenizer(settings)
        return model_with(LlamaModel, config, gguf_weights(tensors)), tokenizer


# Section 5.13: How do you talk to it?
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


# Section 5.14: How does GPT-2 fit in?
GPT2_REPOSITORIES = {  # of openai-community, on Hugging Face
    "124M": "gpt2", "355M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl",
}  # fmt: skip
GPT2_NAMES = {
    "transformer.wte": "tok_emb", "transformer.wpe": "pos_emb", "lm_head": "out_head",
    "transformer.ln_f": "final_norm", "ln_1": "norm1", "ln_2": "norm2",
    "attn.c_attn": "attention.W_qkv", "attn.c_proj": "attention.out_proj",
    "mlp.c_fc": "feed_forward.expand", "mlp.c_proj": "feed_forward.project",
}  # fmt: skip
QKV = ("query", "key", "value")


def from_gpt2(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return GPT-2's weights under our names, from those of transformers' model.

    A head that is the embedding once more is left out.
    """
    weights = {}
    for name, tensor in tensors.items():
        if name.endswith(("lm_head.weight", ".attn.bias", ".attn.masked_bias")):
            continue  # see below; a causal mask
        if ".c_" in name and tensor.ndim == 2:
            tensor = tensor.T  # stored for x @ W
        name = "transformer." + name.removeprefix("transformer.")  # some leave it out
        ours = rename(name, GPT2_NAMES, "transformer.h", "blocks")
        parts = [ours.replace("qkv", part) for part in QKV] if "qkv" in ours else [ours]
        for part, numbers in zip(parts, tensor.chunk(len(parts)), strict=True):
            weights[part] = numbers.contiguous()
    head = tensors.get("lm_head.weight")
    if head is not None and not torch.equal(head, weights.get("tok_emb.weight", head)):
        weights["out_head.weight"] = head  # else it is the embedding once more
    return weights


def load_gpt2(size: str = "124M") -> tuple[Decoder, BPETokenizer]:
    """Return GPT-2 with OpenAI's weights, from Hugging Face, and its tokenizer.

    124M, 355M, 774M or 1558M: 0.5 to 6.4 GB are downloaded once, into Hugging Face's
    cache. Raises ValueError for another size, FetchError if they cannot be brought.
    """
    if size not in GPT2_REPOSITORIES:
        raise ValueError(f"no GPT-2 of size {size!r}: {', '.join(GPT2_REPOSITORIES)}")
    repository = f"openai-community/{GPT2_REPOSITORIES[size]}"
    file = "model.safetensors"
    path = huggingface_hub.try_to_load_from_cache(repository, file)
    try:
        if not isinstance(path, str):
            path = huggingface_hub.hf_hub_download(repository, file)
    except Exception as error:  # of many types
        reason = error.__cause__ or error
        raise FetchError(
            f"{repository} could not be brought: {reason}; "
            f"run again {what_helps(reason)}"
        ) from error
    weights = from_gpt2(read_tensors(path))
    model = model_with(GPTModel, GPT_CONFIGS[size], weights)
    return model, BPETokenizer.from_gpt2_files()


# Section 5.15: How do models travel?
def load_pretrained(name: str | Path = "smollm2-135m") -> tuple[Decoder, BPETokenizer]:
    """Return a model in evaluation mode, and its tokenizer.

    The name is "smollm2-135m", "gpt2-124m" (-355m, -774m, -1558m), or a folder that
    save_model has written ("./smollm2-135m" is a folder of that name). Raises
    ValueError for an unknown name, FetchError if it has to be downloaded and cannot be,
    FileNotFoundError for a folder with a file missing.
    """
    sizes = {f"gpt2-{size.lower()}": size for size in GPT2_REPOSITORIES}
    if name == "smollm2-135m":
        return load_gguf(fetch_smollm2())
    if name in sizes:
        return load_gpt2(sizes[name])
    if Path(name).is_dir():
        return load_model(name)
    raise ValueError(f"no model {name}, only {['smollm2-135m', *sizes]} and folders")


LLAMA_NAMES = {
    "tok_emb": "model.embed_tokens", "final_norm": "model.norm",
    "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
    "attention.W_query": "self_attn.q_proj", "attention.W_key": "self_attn.k_proj",
    "attention.W_value": "self_attn.v_proj", "attention.out_proj": "self_attn.o_proj",
    "feed_forward.gate": "mlp.gate_proj", "feed_forward.up": "mlp.up_proj",
    "feed_forward.project": "mlp.down_proj", "out_head": "lm_head",
}  # fmt: skip


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
    weights = weights_of(model)
    zeros = torch.zeros_like(weights["final_norm.bias"])  # biases only they have
    for i in range(model.config.n_layers):
        block = f"blocks.{i}.attention"
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"{block}.W_{part}.{kind}", zeros) for part in QKV]
            weights[f"{block}.W_qkv.{kind}"] = torch.cat(parts)
    names = {ours: theirs for theirs, ours in GPT2_NAMES.items()}
    tensors = {}
    for name, tensor in weights.items():
        theirs = rename(name, names, "blocks", "transformer.h")
        if ".c_" in theirs and tensor.ndim == 2:
            tensor = tensor.T  # they compute x @ W
        tensors[theirs] = tensor.contiguous()
    return tensors


CHATML = (
    "{% if not messages or messages[0]['role'] != 'system' %}<|im_start|>system\n"
    + SYSTEM
    + "<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
