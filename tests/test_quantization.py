"""Chapter 5: weights of few bits, layers of whole numbers, guessing ahead."""

import copy
import csv
import math
import re

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import shared.quantization as quantization
from shared.gpt_model import GPTConfig, GPTModel
from shared.llama_model import LlamaConfig, LlamaModel
from shared.pretraining import generate
from shared.quantization import (
    QuantizedEmbedding,
    QuantizedLinear,
    dequantize,
    quantize,
    quantize_absmax,
    size_in_bytes,
    speculate,
)
from shared.support import COURSE
from shared.support.files import require_plain

HERE = COURSE / "ch05_pretraining"
GPT = GPTConfig(40, 64, emb_dim=24, n_heads=2, n_layers=2)
LLAMA = LlamaConfig(40, 64, 24, n_heads=4, n_layers=2, n_kv_heads=2, hidden_dim=36)


def small_model(kind: type) -> nn.Module:
    torch.manual_seed(0)
    model = kind(GPT if kind is GPTModel else LLAMA).eval()
    for weight in model.parameters():  # so that guesses differ
        weight.data = torch.randn_like(weight) * 0.3
    return model


def test_a_row_worked_out_by_hand():
    numbers, scales = quantize_absmax(torch.tensor([0.314, -0.872, 1.27]))
    assert numbers.tolist() == [31, -87, 127]
    assert numbers.dtype == torch.int8
    torch.testing.assert_close(scales, torch.tensor([0.01]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 8), st.integers(0, 10_000), st.floats(1e-6, 1e6))
def test_no_weight_moves_by_more_than_half_a_scale(bits, seed, size):
    x = size * torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
    numbers, scales = quantize_absmax(x, bits)
    assert numbers.abs().amax(-1).eq(2 ** (bits - 1) - 1).all()
    errors = (dequantize(numbers, scales) - x).abs()
    assert (errors <= 0.5001 * scales).all()


def test_eight_bits_are_those_of_gguf():
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    kind = gguf.GGMLQuantizationType.Q8_0
    theirs = gguf.dequantize(gguf.quantize(x.numpy(), kind), kind)
    ours = dequantize(*quantize_absmax(x.view(4, 2, 32))).view(4, 64)
    # theirs keeps its scales as float16
    np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-3)


def test_zeros_stay_zeros():
    numbers, scales = quantize_absmax(torch.zeros(2, 4))
    assert not dequantize(numbers, scales).any()
    layer = QuantizedLinear(nn.Linear(4, 3, bias=False))
    assert torch.equal(layer(torch.zeros(1, 4)), torch.zeros(1, 3))


@pytest.mark.parametrize("bits", [1, 9, 4.5])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match=f"2 to 8, got {bits}"):
        quantize_absmax(torch.ones(3), bits)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 32), (1, 1, 32), (5, 32), (2, 3, 32)])
def test_the_layer_is_nearly_the_linear_one_with_and_without_the_kernel(shape, bias):
    torch.manual_seed(1)
    linear = nn.Linear(32, 48, bias=bias)
    x = torch.randn(shape) * 10 ** torch.randint(-2, 3, (*shape[:-1], 1))
    wanted = linear(x).detach()
    plain = QuantizedLinear(linear, kernel=False)(x).detach()
    assert plain.shape == wanted.shape
    rows = (plain - wanted).norm(dim=-1) / (wanted.norm(dim=-1) + 1e-3)
    assert rows.max() < 0.05
    if quantization.has_kernel():
        quick = QuantizedLinear(linear, kernel=True)(x).detach()
        torch.testing.assert_close(quick, plain, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not quantization.has_kernel(), reason="no kernel on this processor")
def test_the_kernel_does_not_overflow():
    linear = nn.Linear(64, 8, bias=False)
    nn.init.ones_(linear.weight)
    x = torch.ones(1, 64)
    torch.testing.assert_close(QuantizedLinear(linear)(x), torch.full((1, 8), 64.0))


def test_packing_leaves_torchs_engine_alone():
    before = torch.backends.quantized.engine
    QuantizedLinear(nn.Linear(8, 8))
    assert torch.backends.quantized.engine == before


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("kind", [GPTModel, LlamaModel])
def test_a_quantized_model_is_nearly_the_same_and_smaller(kind, kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(quantization, "has_kernel", lambda: False)
    model = small_model(kind)
    quantized = copy.deepcopy(model)
    assert quantize(quantized) is quantized
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        wanted, found = model(ids), quantized(ids)
    assert (found - wanted).norm() / wanted.norm() < 0.1
    assert size_in_bytes(quantized) < 0.5 * size_in_bytes(model)
    assert not any(type(part) is nn.Linear for part in quantized.modules())
    assert generate(quantized, ids, 5).shape == (2, 15)
    with pytest.raises(ValueError, match="quantized already"):
        quantize(quantized)
    with pytest.raises(ValueError, match="is not that of a"):
        require_plain(quantized)  # and so it is not saved by mistake


def test_size_counts_every_byte_once():
    model = small_model(LlamaModel)  # its head is its embedding
    n = sum(p.numel() for p in model.parameters())
    assert size_in_bytes(model) == 4 * n
    embedding = QuantizedEmbedding(nn.Embedding(40, 24))
    assert size_in_bytes(embedding) == 40 * 24 + 40 * 4


def test_other_types_and_devices_are_refused():
    model = small_model(GPTModel).to(torch.bfloat16)
    with pytest.raises(ValueError, match="float32 on the CPU is wanted"):
        quantize(model)
    with torch.device("meta"):
        nowhere = GPTModel(GPT)
    with pytest.raises(ValueError, match="not torch.float32 on meta"):
        quantize(nowhere)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from([GPTModel, LlamaModel]),
    n_prompt=st.integers(1, 12),
    n_new=st.integers(0, 20),
    n_draft=st.integers(0, 6),
    right=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_a_draft_changes_no_word(kind, n_prompt, n_new, n_draft, right, seed):
    model = small_model(kind).double()
    dice = torch.Generator().manual_seed(seed)
    prompt = torch.randint(0, 40, (1, n_prompt), generator=dice)
    wanted = generate(model, prompt, n_new)
    known = wanted[0].tolist()
    offered = []

    def draft(ids, n):
        """Guess rightly now and then."""
        assert ids == known[: len(ids)] and 0 <= n <= n_draft
        guesses = known[len(ids) :][:n]
        wrong = torch.rand(len(guesses), generator=dice) > right
        offered.append(len(guesses))
        return [
            (g + w) % 40 for g, w in zip(guesses, wrong.long().tolist(), strict=True)
        ]

    found, accepted = speculate(model, draft, prompt, n_new, n_draft)
    assert torch.equal(found, wanted)
    assert sum(accepted) + len(accepted) == n_new
    assert all(a <= n for a, n in zip(accepted, offered, strict=True))


def test_a_perfect_draft_needs_few_passes_and_a_silent_one_does_no_harm():
    model = small_model(LlamaModel).double()
    prompt = torch.tensor([[3, 4]])
    wanted = generate(model, prompt, 10)
    known = wanted[0].tolist()
    _, accepted = speculate(
        model, lambda ids, n: known[len(ids) : len(ids) + n], prompt, 10
    )
    assert accepted == [4, 4]
    found, accepted = speculate(model, lambda ids, n: [], prompt, 10)
    assert torch.equal(found, wanted) and accepted == [0] * 10


@pytest.mark.parametrize("shape, n", [((2, 3), 1), ((1, 0), 1), ((1, 60), 5)])
def test_speculation_refuses_what_does_not_fit(shape, n):
    model = small_model(LlamaModel)
    ids = torch.zeros(shape, dtype=torch.long)
    with pytest.raises(ValueError, match="at most"):
        speculate(model, lambda ids, n: [], ids, n)


def test_the_figure_of_the_outlier_has_the_numbers_of_the_cells():
    svg = (HERE / "figures" / "absmax.svg").read_text(encoding="utf-8")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    texts = [text.replace("&#8722;", "-") for text in texts]
    for last, decimals in ((0.621, 2), (12.7, 1)):
        row = torch.tensor([0.314, -0.872, 0.053, 1.27, -0.446, last])
        numbers, scales = quantize_absmax(row)
        weights = [f"{w:.3f}" for w in row.tolist()]
        back = [f"{w:.{decimals}f}" for w in dequantize(numbers, scales).tolist()]
        shown = ["weight", *weights, "whole number", *map(str, numbers.tolist())]
        shown += ["read back", *back]
        starts = [i for i, text in enumerate(texts) if text == "weight"]
        assert shown in [texts[i : i + len(shown)] for i in starts]


def test_the_figure_of_the_guesses_has_the_words_of_the_cell():
    notebook = (HERE / "ch05_quantization.ipynb").read_text(encoding="utf-8")
    guesses, best = (
        re.findall(r'\\"([^"]+)\\"', re.search(rf"{name} = \[(.*?)\]", notebook)[1])
        for name in ("guesses", "best")
    )
    svg = (HERE / "figures" / "speculate.svg").read_text(encoding="utf-8")
    boxes = re.findall(r'y="(\d+)" text-anchor="middle"[^>]*>([^<]*)<', svg)
    rows = {y: [word for at, word in boxes if at == y] for y, _ in boxes}
    before = "the cat sat on the".split()
    assert rows["108"] == before + guesses and rows["176"] == best
    assert rows["262"] == before + best[:3]


def test_a_scale_for_all_tokens_would_lose_the_small_ones():
    torch.manual_seed(0)
    linear = nn.Linear(64, 32, bias=False)
    x = torch.randn(2, 64) * torch.tensor([[1.0], [1000.0]])
    wanted, found = linear(x), QuantizedLinear(linear)(x)
    numbers, scale, zero = quantization.quantize_input(x)
    at_once = linear((numbers - zero) * scale)
    assert (found - wanted)[0].norm() < 0.03 * wanted[0].norm()
    assert (at_once - wanted)[0].norm() > 0.3 * wanted[0].norm()


def test_the_sweep_is_whole_and_says_what_the_notebook_says():
    with (HERE / "quantization_sweep.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    loss = {
        (r["model"], r["part"], int(r["bits"]), r["scales"]): float(r["nats_per_byte"])
        for r in rows
    }
    assert len(loss) == len(rows) == 2 * (1 + 3 * 7) + 8 + 30
    assert all(math.isfinite(value) for value in loss.values())
    for model in ("Tiny Tales GPT", "SmolLM2"):
        base = loss[model, "all", 32, "none"]
        for scales in ("row", "group"):
            assert loss[model, "all", 8, scales] < 1.005 * base
            assert loss[model, "all", 2, scales] > 2 * base
        for bits in (5, 4):
            ways = [loss[model, "all", bits, s] for s in ("group", "row", "tensor")]
            assert ways == sorted(ways)
    kinds = {part: v for (_, part, *_), v in loss.items() if part != "all"}
    blocks = {part: v for part, v in kinds.items() if part.startswith("block ")}
    others = sorted(kinds.keys() - blocks.keys(), key=kinds.__getitem__)
    assert others[-1] == "embedding and head" and others[-2] == "MLP, down projection"
    assert max(blocks, key=blocks.__getitem__) == "block 29"
