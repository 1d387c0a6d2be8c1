"""Chapter 4: both models against transformers' results, torch, and themselves."""

import cmath
import math
import re
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import GPT, LLAMA, build, shaken
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import shared.attention
import shared.gpt_model
from shared.attention import attention_mask, future_leak
from shared.gpt_model import (
    GELU,
    GPT_CONFIGS,
    FeedForward,
    GPTConfig,
    GPTModel,
    LayerNorm,
    count_parameters,
)
from shared.llama_model import (
    SMOLLM2_135M,
    GroupedQueryAttention,
    LlamaConfig,
    LlamaModel,
    RMSNorm,
    Rotary,
    SwiGLU,
    halves_to_pairs,
    pairs_to_halves,
)
from shared.pretraining import generate

FIXTURES = Path(__file__).parent / "fixtures"
# The shapes of the fixtures, made by make_model_fixtures.py
TINY_GPT2 = GPTConfig(61, 20, emb_dim=24, n_heads=3, n_layers=2, qkv_bias=True)
TINY_LLAMA = LlamaConfig(
    61, 20, emb_dim=24, n_heads=6, n_layers=2, n_kv_heads=2, hidden_dim=40,
    rope_base=500.0, norm_eps=1e-2, tie_weights=False,
)  # fmt: skip
few = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)
each_model = pytest.mark.parametrize("config", [GPT, LLAMA], ids=["gpt", "llama"])


def shaken_model(config, seed: int = 0):
    """Return a model of either kind, its weights far from their start."""
    return shaken(build(config), seed)


# --- against transformers -------------------------------------------------------------


def gpt2_names(prefix: str) -> dict[str, tuple[str, bool, int | None]]:
    """Our names -> (transformers' name, transposed, which third of a fused matrix)."""
    names = {
        "tok_emb.weight": ("transformer.wte.weight", False, None),
        "pos_emb.weight": ("transformer.wpe.weight", False, None),
        "final_norm.weight": ("transformer.ln_f.weight", False, None),
        "final_norm.bias": ("transformer.ln_f.bias", False, None),
    }
    parts = {
        "norm1": ("ln_1", None), "norm2": ("ln_2", None),
        "attention.out_proj": ("attn.c_proj", None),
        "attention.W_query": ("attn.c_attn", 0), "attention.W_key": ("attn.c_attn", 1),
        "attention.W_value": ("attn.c_attn", 2),
        "feed_forward.expand": ("mlp.c_fc", None),
        "feed_forward.project": ("mlp.c_proj", None),
    }  # fmt: skip
    for layer in range(TINY_GPT2.n_layers):
        for ours, (theirs, third) in parts.items():
            for kind in ("weight", "bias"):
                transposed = kind == "weight" and not ours.startswith("norm")
                name = f"transformer.h.{layer}.{theirs}.{kind}"
                names[f"blocks.{layer}.{ours}.{kind}"] = (name, transposed, third)
    return {ours: (prefix + theirs, *rest) for ours, (theirs, *rest) in names.items()}


def gpt2_state(stored: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    state = {}
    for ours, (theirs, transposed, third) in gpt2_names(prefix).items():
        tensor = stored[theirs]
        if third is not None:
            tensor = tensor.chunk(3, dim=-1)[third]
        state[ours] = tensor.T if transposed else tensor
    return state


def llama_state(
    stored: dict[str, torch.Tensor], prefix: str
) -> dict[str, torch.Tensor]:
    state = {
        "tok_emb.weight": stored[f"{prefix}model.embed_tokens.weight"],
        "final_norm.weight": stored[f"{prefix}model.norm.weight"],
        "out_head.weight": stored[f"{prefix}lm_head.weight"],
    }
    parts = {
        "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
        "attention.W_query": "self_attn.q_proj", "attention.W_key": "self_attn.k_proj",
        "attention.W_value": "self_attn.v_proj",
        "attention.out_proj": "self_attn.o_proj",
        "feed_forward.gate": "mlp.gate_proj", "feed_forward.up": "mlp.up_proj",
        "feed_forward.project": "mlp.down_proj",
    }  # fmt: skip
    for layer in range(TINY_LLAMA.n_layers):
        for ours, theirs in parts.items():
            tensor = stored[f"{prefix}model.layers.{layer}.{theirs}.weight"]
            if "W_query" in ours:
                tensor = halves_to_pairs(tensor, TINY_LLAMA.n_heads)
            if "W_key" in ours:
                tensor = halves_to_pairs(tensor, TINY_LLAMA.n_kv_heads)
            state[f"blocks.{layer}.{ours}.weight"] = tensor
    return state


@pytest.mark.parametrize(
    ("name", "config", "state_of"),
    [("tiny_gpt2", TINY_GPT2, gpt2_state), ("tiny_llama", TINY_LLAMA, llama_state)],
    ids=["gpt2", "llama"],
)
def test_logits_and_gradients_equal_those_of_transformers(name, config, state_of):
    stored = load_file(FIXTURES / f"{name}.safetensors")
    model = shaken_model(config)  # what is not loaded would show
    missing, unexpected = model.load_state_dict(
        state_of(stored, "model."), strict=False
    )
    assert not unexpected and set(missing) <= {"out_head.weight"}  # GPT-2's is tied
    logits = model(stored["token_ids"])
    torch.testing.assert_close(logits, stored["logits"], atol=1e-4, rtol=0)
    targets = stored["token_ids"][:, 1:].flatten()
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets)
    torch.testing.assert_close(loss, stored["loss"])
    loss.backward()
    parameters = dict(model.named_parameters())
    for key, expected in state_of(stored, "grad.").items():
        torch.testing.assert_close(
            parameters[key].grad, expected, atol=2e-5, rtol=1e-3, msg=key
        )


# --- parts ----------------------------------------------------------------------------


def test_norms_equal_torch():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 16, dtype=torch.float64) * 7 + 2
    for ours, reference in [
        (LayerNorm(16), nn.LayerNorm(16)),
        (RMSNorm(16), nn.RMSNorm(16, 1e-5)),
    ]:
        ours, reference = ours.double(), reference.double()
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.normal_()
        reference.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(x), reference(x), atol=1e-10, rtol=0)


def test_feed_forward_and_swiglu_by_formula():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8)
    layer = FeedForward(8)
    hidden = F.linear(x, layer.expand.weight, layer.expand.bias)
    hidden = nn.GELU(approximate="tanh")(hidden)
    expected = F.linear(hidden, layer.project.weight, layer.project.bias)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(GELU()(x), nn.GELU(approximate="tanh")(x))
    gated = SwiGLU(8, 20)
    hidden = nn.SiLU()(x @ gated.gate.weight.T) * (x @ gated.up.weight.T)
    torch.testing.assert_close(gated(x), hidden @ gated.project.weight.T)


@few
@given(
    st.integers(1, 6),
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(0, 400),
    st.integers(0, 99),
)
def test_rotary_scores_depend_on_the_distance_only(pairs, m, n, shift, seed):
    torch.manual_seed(seed)
    rotary = Rotary(2 * pairs, 1000, 10_000.0)
    q, k = torch.randn(2, 1, 1, 1, 2 * pairs, dtype=torch.float64)  # (B, T, H, K)

    def turned(x, position):
        return rotary(x, rotary.turns(torch.tensor([position])))

    here = (turned(q, m) * turned(k, n)).sum()
    there = (turned(q, m + shift) * turned(k, n + shift)).sum()
    torch.testing.assert_close(here, there, atol=1e-4, rtol=0)


@few
@given(
    st.integers(1, 6),
    st.integers(0, 8191),
    st.sampled_from([10_000.0, 100_000.0]),
    st.integers(0, 99),
)
def test_rotary_turns_pairs_as_complex_numbers_do(pairs, position, base, seed):
    torch.manual_seed(seed)
    x = torch.randn(1, 1, 3, 2 * pairs, dtype=torch.float64)  # (B, T, H, K)
    rotary = Rotary(2 * pairs, 8192, base)
    turned = rotary(x, rotary.turns(torch.tensor([position])))
    for head in range(3):
        for pair in range(pairs):
            angle = position * base ** (-2 * pair / (2 * pairs))
            both = slice(2 * pair, 2 * pair + 2)
            expected = complex(*x[0, 0, head, both].tolist()) * cmath.exp(1j * angle)
            found = complex(*turned[0, 0, head, both].tolist())
            assert abs(found - expected) < 1e-5


def test_every_row_of_a_batch_is_turned_by_its_own_positions():
    torch.manual_seed(0)
    rotary = Rotary(4, 16)
    x = torch.randn(2, 3, 2, 4)  # (B, T, H, K)
    positions = torch.tensor([[0, 1, 2], [9, 0, 4]])
    turned = rotary(x, rotary.turns(positions))
    for row in range(2):
        alone = rotary(x[row : row + 1], rotary.turns(positions[row]))
        torch.testing.assert_close(turned[row : row + 1], alone)
    assert turned[1, 0].ne(x[1, 0]).any() and turned[1, 1].equal(x[1, 1])


def test_rotary_orders_are_each_others_inverse_and_leave_the_input_alone():
    weight = torch.arange(24.0 * 5).view(24, 5)
    torch.testing.assert_close(pairs_to_halves(halves_to_pairs(weight, 3), 3), weight)
    rows = halves_to_pairs(torch.arange(8)[:, None], 1).flatten().tolist()
    assert rows == [0, 4, 1, 5, 2, 6, 3, 7]
    x = torch.randn(1, 3, 2, 4)
    before = x.clone()
    rotary = Rotary(4, 600)
    rotary(x, rotary.turns(torch.arange(3)))
    torch.testing.assert_close(x, before)
    late = rotary.turns(torch.tensor([599]))
    half = rotary(torch.ones(1, 1, 1, 4, dtype=torch.bfloat16), late)
    exact = rotary(torch.ones(1, 1, 1, 4), late)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0.01, rtol=0)


def test_grouped_heads_equal_copied_ones():
    torch.manual_seed(0)
    rotary = Rotary(LLAMA.head_dim, LLAMA.context_length)
    grouped = GroupedQueryAttention(LLAMA, rotary)
    apart = GroupedQueryAttention(replace(LLAMA, n_kv_heads=4), rotary)
    state = grouped.state_dict()
    for name in ("W_key.weight", "W_value.weight"):
        heads = state[name].unflatten(0, (2, -1))
        state[name] = heads.repeat_interleave(2, dim=0).flatten(0, 1)
    apart.load_state_dict(state)
    x = torch.randn(2, 7, 24)
    turns = rotary.turns(torch.arange(7))
    torch.testing.assert_close(grouped(x, None, turns), apart(x, None, turns))


# --- numbers in the figures of ch04_llama_model ---------------------------------------


def words_in(name: str) -> str:
    """Return the words of a figure, in the order in which they stand in the file."""
    path = Path(__file__).parents[1] / "ch04_gpt_model" / "figures" / f"{name}.svg"
    found = re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))
    return " ".join(found).replace(",", "")


def test_the_scores_in_the_figure_of_the_plane():
    words = words_in("rotary_plane")
    x, y, u, v = map(float, re.findall(r"\d\.\d(?=[ )])", words)[:4])
    assert complex(x, y) == 1 + 0.2j and complex(u, v) == 0.9 + 0.1j
    assert "= 0.3" in words  # theta
    rows = re.findall(r"(\d+) (\d+) (\d\.\d\d)", words.rpartition("score")[2])
    assert [row[:2] for row in rows] == [
        ("5", "3"),
        ("9", "7"),
        ("105", "103"),
        ("5", "4"),
    ]
    for m, n, score in rows:
        query = complex(x, y) * cmath.exp(0.3j * int(m))
        key = complex(u, v) * cmath.exp(0.3j * int(n))
        assert score == f"{(query * key.conjugate()).real:.2f}"
    assert "score is 0.71" in words


def test_the_speeds_in_the_figure_of_the_hands():
    words = words_in("rotary_hands")
    speeds = [float(n) for n in re.findall(r"(\S+) radian", words)]
    assert speeds == pytest.approx([10_000 ** (-2 * i / 8) for i in range(4)])
    turns = [int(n) for n in re.findall(r"one turn: (\d+)", words)]
    assert turns == [round(2 * math.pi / speed) for speed in speeds]


def test_a_figure_that_moves_stands_still_for_who_wants_that():
    folder = Path(__file__).parents[1] / "ch04_gpt_model" / "figures"
    figures = [path.read_text(encoding="utf-8") for path in folder.glob("*.svg")]
    assert not any("<animate" in svg for svg in figures)  # no media query reaches it
    moving = [svg for svg in figures if "@keyframes" in svg]
    assert len(moving) == 3
    assert all("prefers-reduced-motion" in svg for svg in moving)


def test_the_order_in_the_figure_of_the_pairs():
    order = halves_to_pairs(torch.arange(8), 1).tolist()
    assert " ".join(map(str, order)) in words_in("rotary_pairs")


def test_the_bytes_in_the_figure_of_the_groups():
    words = words_in("grouped_query")
    heads = [int(n) for n in re.findall(r"(\d+) key/value head", words)]
    found = [int(n) for n in re.findall(r"cache: (\d+) bytes a token", words)]
    assert heads == [9, 3, 1]
    for n_kv_heads, size in zip(heads, found, strict=True):
        config = replace(SMOLLM2_135M, n_kv_heads=n_kv_heads, n_layers=1, vocab_size=9)
        layer = LlamaModel(config).new_cache(1, 1).layers[0]
        assert size == 30 * (layer.keys.nbytes + layer.values.nbytes)


# --- models ---------------------------------------------------------------------------


def test_parameter_counts():
    with torch.device("meta"):
        counts = {
            name: count_parameters(GPTModel(config))
            for name, config in GPT_CONFIGS.items()
        }
        plain = GPTConfig()
        untied = replace(plain, tie_weights=False)
        assert count_parameters(GPTModel(plain)) == 124_412_160
        assert count_parameters(GPTModel(untied)) == 163_009_536
        assert count_parameters(LlamaModel(SMOLLM2_135M)) == 134_515_008
    published = {
        "124M": 124_439_808,
        "355M": 354_823_168,
        "774M": 774_030_080,
        "1558M": 1_557_611_200,
    }
    assert {name: counts[name] for name in published} == published
    model = build()
    trained = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith("blocks.")
        trained += parameter.requires_grad * parameter.numel()
    assert count_parameters(model, trainable=True) == trained < count_parameters(model)


@each_model
@pytest.mark.parametrize("tie", [True, False])
def test_a_fresh_model_is_undecided(config, tie):
    config = replace(config, vocab_size=2000, emb_dim=96, tie_weights=tie)
    model = build(config)
    token_ids = torch.randint(2000, (8, 16))
    loss = F.cross_entropy(
        model(token_ids)[:, :-1].flatten(0, 1), token_ids[:, 1:].flatten()
    )
    assert abs(loss.item() / math.log(2000) - 1) < 0.05
    assert model.tok_emb.weight.std().item() == pytest.approx(0.02, rel=0.05)
    into_stream = model.blocks[0].attention.out_proj.weight.std().item()
    assert into_stream == pytest.approx(0.02 / math.sqrt(2 * config.n_layers), rel=0.05)
    assert all(
        p.eq(0).all() for name, p in model.named_parameters() if name.endswith("bias")
    )


@each_model
def test_interface(config):
    model = shaken_model(config)
    token_ids = torch.randint(50, (2, 9))
    hidden = model.hidden_states(token_ids)
    assert hidden.shape == (2, 9, 24) and model.config == config
    torch.testing.assert_close(model.out_head(hidden), model(token_ids))
    for block in model.blocks:
        for name in ("W_query", "W_key", "W_value", "out_proj"):
            assert isinstance(getattr(block.attention, name), nn.Linear)

    def stack(x):  # everything behind the embedding
        places = model.places(torch.arange(x.shape[1]))
        for block in model.blocks:
            x = block(x, None, places)
        return model.final_norm(x)

    embedded = model.embed(token_ids, torch.arange(9))
    torch.testing.assert_close(stack(embedded), hidden)
    assert future_leak(stack, 8, 24) == 0.0


@each_model
def test_the_cache_has_the_models_kv_heads_and_room(config):
    model = build(config)
    cache = model.new_cache(batch_size=3, max_tokens=9)
    assert config.n_kv_heads == (2 if config is LLAMA else 4)
    assert len(cache.layers) == 2 and cache.length == 0
    for layer in cache.layers:
        assert layer.keys.shape == layer.values.shape == (3, config.n_kv_heads, 9, 6)


@each_model
def test_a_model_knows_its_device(config):
    model = build(config)
    assert model.device == torch.device("cpu")
    assert model.new_cache(1, 4).layers[0].keys.device == model.device
    model.to(
        "meta"
    )  # shapes without numbers: the one other device that is always there
    assert model.device == torch.device("meta")
    logits = model(torch.zeros(2, 4, dtype=torch.int64, device="meta"))
    assert logits.device == model.device and logits.shape == (2, 4, 50)


@each_model
@pytest.mark.parametrize("tie", [True, False])
def test_replacing_the_head_never_changes_the_table(config, tie):
    model = build(replace(config, tie_weights=tie))
    assert (model.out_head.weight is model.tok_emb.weight) == tie
    table = model.tok_emb.weight.detach().clone()
    model.out_head = nn.Linear(24, 2)
    assert model(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 2)
    nn.init.zeros_(model.out_head.weight)
    torch.testing.assert_close(model.tok_emb.weight, table)


@each_model
def test_tie_after_assigning_weights(config):
    model = build(replace(config, tie_weights=True))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert model.out_head.weight is not model.tok_emb.weight
    model.tie()
    assert model.out_head.weight is model.tok_emb.weight


# --- with a cache, and padding --------------------------------------------------------


def padded_left(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows (T,) of unequal length as one batch (B, T), and its pad_left."""
    longest = max(len(row) for row in rows)
    batch = [F.pad(row, (longest - len(row), 0), value=7) for row in rows]
    return torch.stack(batch), torch.tensor([longest - len(row) for row in rows])


@each_model
@few
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 16), min_size=1, max_size=4),
    st.data(),
)
def test_padded_rows_in_pieces_equal_each_row_alone(config, seed, lengths, data):
    model = shaken_model(config, seed)
    rows = [torch.randint(50, (n,)) for n in lengths]
    token_ids, pad_left = padded_left(rows)
    longest = max(lengths)
    cache = model.new_cache(len(rows), longest, pad_left)
    pieces = []
    while cache.length < longest:
        end = data.draw(st.integers(cache.length + 1, longest))
        pieces.append(model(token_ids[:, cache.length : end], cache))
    logits = torch.cat(pieces, dim=1)
    for row, found, pad in zip(rows, logits, pad_left.tolist(), strict=True):
        alone = model(row[None])[0]
        torch.testing.assert_close(found[pad:], alone, atol=2e-4, rtol=1e-4)


@each_model
@pytest.mark.parametrize("lengths", [(7, 3, 5), (1, 9), (4,)])
def test_padded_prompts_continued_token_by_token_equal_each_alone(config, lengths):
    model = shaken_model(config)
    rows = [torch.randint(50, (n,)) for n in lengths]
    token_ids, pad_left = padded_left(rows)
    cache = model.new_cache(len(rows), 16, pad_left)
    new = token_ids
    with torch.no_grad():
        for _ in range(16 - max(lengths)):  # up to the end of the context
            logits = model(new, cache)[:, -1]
            new = logits.argmax(dim=-1, keepdim=True)
            for n, row in enumerate(rows):
                alone = model(row[None])[0, -1]
                torch.testing.assert_close(logits[n], alone, atol=2e-4, rtol=1e-4)
                rows[n] = torch.cat([row, new[n]])


@each_model
def test_padding_that_nobody_tells_of_changes_the_result(config):
    model = shaken_model(config)
    rows = [torch.randint(50, (n,)) for n in (7, 3)]
    token_ids, pad_left = padded_left(rows)
    alone = model(rows[1][None])[0, -1]
    told, untold = (
        model(token_ids, model.new_cache(2, 7, pad))[1, -1] for pad in (pad_left, None)
    )
    torch.testing.assert_close(told, alone, atol=2e-4, rtol=1e-4)
    assert (untold - alone).abs().max() > 0.1


@each_model
def test_positions_count_from_the_first_real_token(config, monkeypatch):
    model = build(config)
    seen = []
    embed = model.embed

    def note(token_ids, positions):
        seen.append(positions.tolist())
        return embed(token_ids, positions)

    monkeypatch.setattr(model, "embed", note)
    token_ids = torch.zeros(2, 5, dtype=torch.int64)
    model(token_ids)
    for pad_left in (None, torch.tensor([0, 3])):
        cache = model.new_cache(2, 5, pad_left)
        model(token_ids[:, :4], cache)
        model(token_ids[:, 4:], cache)
    assert seen[:3] == [[0, 1, 2, 3, 4], [0, 1, 2, 3], [4]]
    assert seen[3:] == [[[0, 1, 2, 3], [0, 0, 0, 0]], [[4], [1]]]


@each_model
def test_mask_and_turns_are_made_once_for_each_forward_pass(config, monkeypatch):
    masks, turns = [], []
    real_turns = Rotary.turns

    def count_mask(*args, **options):
        masks.append(1)
        return attention_mask(*args, **options)

    def count_turns(self, positions):
        turns.append(1)
        return real_turns(self, positions)

    for module in (shared.gpt_model, shared.attention):
        monkeypatch.setattr(module, "attention_mask", count_mask)
    monkeypatch.setattr(Rotary, "turns", count_turns)
    model = build(config)
    token_ids = torch.zeros(2, 6, dtype=torch.int64)
    forwards = 1
    model(token_ids)
    for pad_left in (None, torch.tensor([0, 2])):
        cache = model.new_cache(2, 6, pad_left)
        for start, end in [(0, 3), (3, 5), (5, 6)]:
            model(token_ids[:, start:end], cache)
            forwards += 1
    assert len(masks) == forwards
    assert len(turns) == (forwards if config is LLAMA else 0)


@each_model
def test_generation_reads_every_token_once_and_scores_one_position(config):
    model = build(config)
    read, scored = [], []
    model.tok_emb.register_forward_pre_hook(
        lambda _, inputs: read.append(inputs[0].shape[1])
    )
    model.out_head.register_forward_pre_hook(
        lambda _, inputs: scored.append((inputs[0].numel(), inputs[0].requires_grad))
    )
    generate(model, torch.zeros(2, 5, dtype=torch.int64), 4)
    assert read == [5, 1, 1, 1]
    assert scored == [(2 * 24, False)] * 4  # and no gradients are kept


@each_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_cache_has_the_dtype_of_the_model(config, dtype):
    model = shaken_model(config).to(dtype)
    token_ids = torch.randint(50, (2, 6))
    with torch.no_grad():
        cache = model.new_cache(2, 6)
        parts = [model(token_ids[:, :4], cache), model(token_ids[:, 4:], cache)]
        logits = torch.cat(parts, dim=1)
        assert logits.dtype == dtype
        atol = 1e-10 if dtype == torch.float64 else 0.5
        torch.testing.assert_close(logits, model(token_ids), atol=atol, rtol=0)


@each_model
def test_the_cache_fits_mixed_precision(config):
    model = shaken_model(config)
    token_ids = torch.randint(50, (2, 6))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        cache = model.new_cache(2, 6)
        parts = [model(token_ids[:, :4], cache), model(token_ids[:, 4:], cache)]
        logits = torch.cat(parts, dim=1)
        torch.testing.assert_close(logits, model(token_ids), atol=0.5, rtol=0)


def test_dropout_stands_in_three_places(monkeypatch):
    dropped, rates = [], []
    real_dropout, real_attention = F.dropout, F.scaled_dot_product_attention

    def dropout(x, p, training, inplace=False):
        dropped.append(p if training else 0.0)
        return real_dropout(x, p, training, inplace)

    def attention(*args, dropout_p=0.0, **options):
        rates.append(dropout_p)
        return real_attention(*args, dropout_p=dropout_p, **options)

    monkeypatch.setattr(F, "dropout", dropout)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    model = build(replace(GPT, dropout=0.5)).train()
    model(torch.zeros(1, 4, dtype=torch.int64))
    # Embeddings, and the end of both branches
    assert dropped == [0.5] * (1 + 2 * GPT.n_layers)
    assert rates == [0.5] * GPT.n_layers
    dropped.clear()
    rates.clear()
    model.eval()(torch.zeros(1, 4, dtype=torch.int64))
    assert set(dropped) == {0.0} == set(rates)


@each_model
def test_bad_input_is_named(config):
    model = build(config)
    token_ids = torch.zeros(2, 5, dtype=torch.int64)
    cache = model.new_cache(1, 16)
    model(torch.zeros(1, 14, dtype=torch.int64), cache)
    cases = [
        (lambda: model(token_ids[0]), r"\(5,\)"),
        (lambda: model(token_ids[:, :0]), r"\(2, 0\)"),
        (
            lambda: model(torch.zeros(1, 17, dtype=torch.int64)),
            r"\(1, 17\) after 0 .* 16 tokens",
        ),
        (lambda: model(token_ids[:1, :3], cache), r"\(1, 3\) after 14 .* 16 tokens"),
        (lambda: model.new_cache(2, 5, torch.tensor([1])), "pad_left"),
        (lambda: model(token_ids, model.new_cache(2, 4)), "full"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


# --- configurations -------------------------------------------------------------------


def test_the_published_shapes():
    gpt2 = {"124M": (768, 12, 12), "355M": (1024, 16, 24), "774M": (1280, 20, 36)}
    gpt2["1558M"] = (1600, 25, 48)
    for name, shape in gpt2.items():
        config = GPT_CONFIGS[name]
        assert (config.emb_dim, config.n_heads, config.n_layers) == shape
        assert (config.vocab_size, config.context_length) == (50_257, 1024)
        assert config.qkv_bias and config.tie_weights
    mini = GPT_CONFIGS["mini"]
    assert (mini.n_layers, mini.n_heads, mini.emb_dim) == (16, 8, 512)
    assert (mini.vocab_size, mini.context_length) == (6400, 512)
    smol = SMOLLM2_135M
    assert (smol.vocab_size, smol.context_length, smol.emb_dim) == (49_152, 8192, 576)
    assert (smol.n_layers, smol.n_heads, smol.n_kv_heads) == (30, 9, 3)
    assert (smol.hidden_dim, smol.rope_base, smol.norm_eps) == (1536, 100_000.0, 1e-5)
    assert smol.tie_weights


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (GPT, {"n_heads": 5}, "5 heads do not divide emb_dim = 24"),
        (GPT, {"vocab_size": 0}, "vocab_size .* at least 1, got 0"),
        (GPT, {"context_length": -1}, "context_length .* got -1"),
        (GPT, {"n_layers": 2.0}, "n_layers .* got 2.0"),
        (GPT, {"n_layers": True}, "n_layers .* got True"),
        (LLAMA, {"n_kv_heads": 3}, "3 kv heads do not divide 4"),
        (LLAMA, {"n_heads": 8}, "even head_dim, got 3"),
        (LLAMA, {"n_heads": 5}, "5 heads do not divide"),
        (LLAMA, {"hidden_dim": 0}, "hidden_dim"),
        (LLAMA, {"n_kv_heads": 0}, "n_kv_heads"),
    ],
)
def test_impossible_configurations_are_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **change)


LATER = """
from __future__ import annotations

from dataclasses import dataclass

from shared.gpt_model import DecoderConfig


@dataclass(frozen=True)
class LaterConfig(DecoderConfig):
    width: int = 3
"""


@pytest.mark.parametrize("name", ["vocab_size", "emb_dim", "n_layers", "n_heads"])
def test_configurations_are_checked_also_where_annotations_are_text(name):
    namespace = {"__name__": __name__}  # dataclasses look it up among the modules
    exec(LATER, namespace)
    config = namespace["LaterConfig"](50, 16, 24, 4, 2)
    assert config.head_dim == 6 and config.n_kv_heads == 4
    for wrong in (0, -1, 2.0, "2", True):
        with pytest.raises(ValueError, match=f"{name} must be a whole number"):
            replace(config, **{name: wrong})
    with pytest.raises(ValueError, match="5 heads do not divide"):
        replace(config, n_heads=5)


@pytest.mark.parametrize("config", [GPT, LLAMA], ids=["gpt", "llama"])
def test_configurations_cannot_change(config):
    for field in fields(config):
        with pytest.raises(FrozenInstanceError):
            setattr(config, field.name, 1)


@each_model
def test_rows_that_the_cache_does_not_have_are_refused(config):
    model = build(config)
    for pad_left in (None, torch.tensor([0, 1])):
        cache = model.new_cache(2, 8, pad_left)
        for n_rows in (1, 3):
            with pytest.raises(ValueError, match=f"{n_rows} rows, but 2 in the cache"):
                model(torch.ones(n_rows, 4, dtype=torch.int64), cache)
        assert cache.length == 0
