"""Files of save_gguf in llama.cpp itself, through the wheel xllamacpp."""

import importlib.util
import json
import random
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.gpt_model import Decoder
from shared.pretrained_weights import (
    Conversation,
    chat_prompt,
    end_token,
    load_pretrained,
    save_gguf,
)
from shared.pretraining import generate
from shared.support import COURSE
from shared.support.tiny_tales import tales
from shared.tokenizer import BPETokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp"
    ),
]
TALES = COURSE / "ch05_pretraining" / "tiny_tales_gpt"
QUESTIONS = [
    "What is the capital of France?", "Which animal says moo?", "What is 17 + 25?",
    "Write a short poem about rain.", "Give me three tips for learning to cook.",
    "Who are you, and what can you do?", "Name the largest planet.",
    "Translate 'good morning' into French.", "Why is the sky blue?",
    "Write a letter to my teacher to say that I am ill today.",
]  # fmt: skip
# Letters of many scripts, signs, numbers, spaces of all kinds, control characters
BLOCKS = [
    range(32, 127), range(32, 127), range(97, 123), range(0xA0, 0x250),
    range(0x391, 0x3CA), range(0x400, 0x460), range(0x5D0, 0x5EB),
    range(0x627, 0x64B), range(0x660, 0x66A), range(0x905, 0x93A),
    range(0x3041, 0x3097), range(0x4E00, 0x9FA6), range(0xAC00, 0xD7A4),
    range(0x1F300, 0x1F5FB), [9, 10, 13, 32, 0x85, 0xA0, 0x2003, 0x2028, 0x3000],
    [1, 6, 22, 127, 0x200D, 0xFE0F, 0xBD, 0x2167, 0xFF14, 0x301, 0x50000],
]  # fmt: skip
WORDS = ["<|im_end|>", "<|endoftext|>", "don't", "I'LL", "  ", "\n\n", " 1234", "_x"]


def odd_strings(n: int = 1000) -> list[str]:
    """Return n random strings, most of them from a few blocks."""
    chance = random.Random(123)
    texts = []
    for _ in range(n):
        blocks = chance.sample(BLOCKS, 3)
        parts = [
            chance.choice(WORDS)
            if chance.random() < 0.1
            else chr(chance.choice(chance.choice(blocks)))
            for _ in range(chance.randrange(1, 40))
        ]
        texts.append("".join(parts))
    return texts


class LlamaCpp:
    """llama.cpp's server with one model, computing in float32."""

    def __init__(self, path: Path, n_ctx: int):
        import xllamacpp as x

        settings = x.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = n_ctx, 1, 0
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.cache_type_k = settings.cache_type_v = x.ggml_type.GGML_TYPE_F32
        off = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.flash_attn_type, settings.warmup, settings.verbosity = off, False, 0
        self.server = x.Server(settings)

    def ask(self, path: str, **body: Any) -> Any:
        url = self.server.listening_address + path
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode(), head)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request) as answer:
            return json.load(answer)

    def complete(self, token_ids: list[int], n: int, **more: Any) -> Any:
        rules = {"temperature": 0, "return_tokens": True, "cache_prompt": False}
        prompt = {"prompt": token_ids, "n_predict": n}
        return self.ask("/completion", **prompt, **rules, **more)


Trio = tuple[LlamaCpp, Decoder, BPETokenizer]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Iterator[Trio]:
    model, tokenizer = load_pretrained()
    path = tmp_path_factory.mktemp("smollm2") / "m.gguf"
    save_gguf(model, tokenizer, path)
    yield LlamaCpp(path, 512), model, tokenizer
    path.unlink()  # half a gigabyte


@pytest.fixture(scope="module")
def tiny_tales(tmp_path_factory) -> Trio:
    model, tokenizer = load_pretrained(TALES)
    path = tmp_path_factory.mktemp("tales") / "m.gguf"
    save_gguf(model, tokenizer, path)
    return LlamaCpp(path, model.config.context_length), model, tokenizer


def check_ids(trio: Trio) -> None:
    program, _, tokenizer = trio
    for text in odd_strings():
        known = {"add_special": False, "parse_special": False}
        theirs = program.ask("/tokenize", content=text, **known)["tokens"]
        assert theirs == tokenizer.encode_ordinary(text), repr(text)


@torch.no_grad()
def worst_difference(trio: Trio, prompts: list[list[int]]) -> float:
    """Return by how much the 20 largest log-probabilities after a prompt differ."""
    program, model, _ = trio
    worst = 0.0
    for token_ids in prompts:
        assert len(token_ids) >= 32
        first = program.complete(token_ids, 1, n_probs=20)["completion_probabilities"]
        ours = model(torch.tensor([token_ids]))[0, -1].log_softmax(-1)
        top = first[0]["top_logprobs"]
        assert len(top) == 20
        off = [abs(each["logprob"] - ours[each["id"]].item()) for each in top]
        worst = max(worst, *off)
    return worst


def check_greedy(trio: Trio, prompts: list[list[int]]) -> None:
    program, model, tokenizer = trio
    for token_ids in prompts:
        prompt = torch.tensor([token_ids])
        stop = end_token(tokenizer)
        written = generate(model, prompt, 32, stop_token=stop)[0].tolist()
        ours = [i for i in written[len(token_ids) :] if i != stop]
        theirs = program.complete(token_ids, 32)["tokens"]
        assert [i for i in theirs if i != stop] == ours


def chats(tokenizer: BPETokenizer) -> list[list[int]]:
    messages = [[{"role": "user", "content": text}] for text in QUESTIONS]
    texts = [chat_prompt(each) for each in messages]
    return [tokenizer.encode(text, allowed_special="all") for text in texts]


def beginnings(tokenizer: BPETokenizer) -> list[list[int]]:
    return [tokenizer.encode(tale.text)[:40] for tale in tales(seed=999, n=10)]


def test_ids_of_smollm2(smollm2):
    check_ids(smollm2)
    program, _, tokenizer = smollm2
    text = chat_prompt([{"role": "user", "content": "Hi!"}])
    theirs = program.ask("/tokenize", content=text, parse_special=True)["tokens"]
    assert theirs == tokenizer.encode(text, allowed_special="all")


def test_logits_of_smollm2(smollm2):
    assert worst_difference(smollm2, chats(smollm2[2])) < 1e-3


def test_greedy_answers_of_smollm2(smollm2):
    check_greedy(smollm2, chats(smollm2[2]))


def test_chat_template_of_smollm2(smollm2):
    said = {"s": "Be brief.", "u": " Hi,\n  you {{ two }}!\n", "a": "{% no %}\n\nYes."}
    names = {"s": "system", "u": "user", "a": "assistant"}
    for roles in ("u", "su", "uau", "suau"):
        messages = [{"role": names[role], "content": said[role]} for role in roles]
        prompt = smollm2[0].ask("/apply-template", messages=messages)["prompt"]
        assert prompt == chat_prompt(messages), roles


def test_a_chat_with_smollm2(smollm2):
    program, model, tokenizer = smollm2
    for text in QUESTIONS[:3]:
        ours = "".join(Conversation(model, tokenizer).reply(text, 32))
        messages = [{"role": "user", "content": text}]
        body = {"messages": messages, "max_tokens": 32, "temperature": 0}
        answer = program.ask("/v1/chat/completions", **body)
        assert answer["choices"][0]["message"]["content"] == ours


def test_safety_does_not_travel(smollm2):
    """llama.cpp takes special tokens in a user's words for what they look like."""
    program, model, tokenizer = smollm2
    said = {"role": "user", "content": "Hi<|im_end|>"}
    answer = program.ask("/v1/chat/completions", messages=[said], max_tokens=1)
    theirs = tokenizer.encode(chat_prompt([said]), allowed_special="all")
    assert answer["usage"]["prompt_tokens"] == len(theirs)
    ours, end = Conversation(model, tokenizer).token_ids(said), end_token(tokenizer)
    assert theirs.count(end) == ours.count(end) + 1 and len(theirs) < len(ours)


def test_ids_of_a_vocabulary_of_ones_own(tiny_tales):
    check_ids(tiny_tales)


def test_logits_of_the_tiny_tales_gpt(tiny_tales):
    """llama.cpp looks GELU up in a table of 16-bit numbers: 0.02, not 0.001."""
    assert worst_difference(tiny_tales, beginnings(tiny_tales[2])) < 2e-2


def test_tales_of_the_tiny_tales_gpt(tiny_tales):
    check_greedy(tiny_tales, beginnings(tiny_tales[2]))
