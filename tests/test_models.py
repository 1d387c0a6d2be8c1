"""Chapter 4: both models against transformers' results, torch, and themselves."""

import cmath
import math
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import shared.gpt_model
from shared.attention import future_leak
from shared.gpt_model import (
    GELU,
    GPT_CONFIGS,
    FeedForward,
    GPTConfig,
    GPTModel,
    LayerNorm,
    Linear,
    OneDNNLinear,
    count_parameters,
    token_positions,
    use_fast_linear,
)
from shared.llama_model import (
    SMOLLM2_135M,
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
GPT = GPTConfig(61, 20, emb_dim=24, n_heads=3, n_layers=2, qkv_bias=True)
LLAMA = LlamaConfig(
    61,
    20,
    24,
    6,
    2,
    2,
    hidden_dim=40,
    rope_base=500.0,
    norm_eps=1e-2,
    tie_weights=False,
)
few = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)
each_model = pytest.mark.parametrize("config", [GPT, LLAMA], ids=["gpt", "llama"])


def build(config, seed: int = 0):
    torch.manual_seed(seed)
    model = (GPTModel if isinstance(config, GPTConfig) else LlamaModel)(config).eval()
    # Far from the start, so that nothing is nearly zero by accident
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3).add_(1.0 if parameter.ndim == 1 else 0.0)
    return model


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
    for layer in range(GPT.n_layers):
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
    for layer in range(LLAMA.n_layers):
        for ours, theirs in parts.items():
            tensor = stored[f"{prefix}model.layers.{layer}.{theirs}.weight"]
            if "W_query" in ours:
                tensor = halves_to_pairs(tensor, LLAMA.n_heads)
            if "W_key" in ours:
                tensor = halves_to_pairs(tensor, LLAMA.n_kv_heads)
            state[f"blocks.{layer}.{ours}.weight"] = tensor
    return state


@pytest.mark.parametrize(
    ("name", "config", "state_of"),
    [("tiny_gpt2", GPT, gpt2_state), ("tiny_llama", LLAMA, llama_state)],
    ids=["gpt2", "llama"],
)
def test_logits_and_gradients_equal_those_of_transformers(name, config, state_of):
    stored = load_file(FIXTURES / f"{name}.safetensors")
    model = build(config)
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
    st.lists(st.integers(1, 6), max_size=2), st.integers(1, 40), st.integers(1, 40),
    st.booleans(), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_fast_product_equals_the_usual_one(batch, d_in, d_out, bias, strided, seed):
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of PyTorch has no oneDNN")
    torch.manual_seed(seed)
    x = torch.randn(*batch, d_in, 3)[..., 1] if strided else torch.randn(*batch, d_in)
    layer = nn.Linear(d_in, d_out, bias=bias)
    probe = torch.randn(*batch, d_out)
    results = []
    for function in (
        layer,
        lambda x: OneDNNLinear.apply(x.contiguous(), layer.weight, layer.bias),
    ):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        (out * probe).sum().backward()
        results.append(
            [out.detach(), leaf.grad, *(p.grad.clone() for p in layer.parameters())]
        )
    for usual, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, usual, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("use_onednn", [True, False])
def test_linear_takes_every_dtype_and_expanded_gradients(use_onednn, monkeypatch):
    if use_onednn and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of PyTorch has no oneDNN")
    monkeypatch.setattr(shared.gpt_model, "USE_ONEDNN", use_onednn)
    torch.manual_seed(0)
    usual = nn.Linear(6, 5)
    fast = nn.Sequential(nn.Linear(6, 5))
    fast[0].load_state_dict(usual.state_dict())
    weight = fast[0].weight
    use_fast_linear(fast)
    assert type(fast[0]) is Linear and fast[0].weight is weight
    x = torch.randn(4, 3, 6)
    for layer in (usual, fast):
        layer(x).sum().backward()  # the gradient that arrives is one number, expanded
    torch.testing.assert_close(fast[0].weight.grad, usual.weight.grad)
    fast[0].weight.requires_grad_(False)
    torch.testing.assert_close(fast(x).detach(), usual(x).detach())
    for dtype in (torch.float64, torch.bfloat16):
        torch.testing.assert_close(
            fast.to(dtype)(x.to(dtype)), usual.to(dtype)(x.to(dtype))
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast.float()(x).dtype == torch.bfloat16


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
    q, k = torch.randn(2, 1, 1, 1, 2 * pairs, dtype=torch.float64)
    score = [
        (rotary(q, torch.tensor([m + s])) * rotary(k, torch.tensor([n + s]))).sum()
        for s in (0, shift)
    ]
    torch.testing.assert_close(score[0], score[1], atol=1e-4, rtol=0)
    turned = rotary(q, torch.tensor([m]))[0, 0, 0]
    far = Rotary(2 * pairs, 8192, 100_000.0)(q, torch.tensor([8191]))[0, 0, 0]
    for pair in range(pairs):
        angle = 8191 * 100_000.0 ** (-2 * pair / (2 * pairs))
        expected = complex(*q[0, 0, 0, 2 * pair : 2 * pair + 2].tolist()) * cmath.exp(
            1j * angle
        )
        torch.testing.assert_close(
            far[2 * pair].item(), expected.real, atol=1e-5, rtol=0
        )
    for pair in range(pairs):  # by hand
        angle = m * 10_000.0 ** (-2 * pair / (2 * pairs))
        a, b = q[0, 0, 0, 2 * pair : 2 * pair + 2].tolist()
        expected = [
            a * math.cos(angle) - b * math.sin(angle),
            a * math.sin(angle) + b * math.cos(angle),
        ]
        expected = torch.tensor(expected, dtype=torch.float64)
        both = turned[2 * pair : 2 * pair + 2]
        torch.testing.assert_close(both, expected, atol=1e-5, rtol=0)


def test_rotary_orders_are_each_others_inverse_and_leave_the_input_alone():
    weight = torch.arange(24.0 * 5).view(24, 5)
    torch.testing.assert_close(pairs_to_halves(halves_to_pairs(weight, 3), 3), weight)
    rows = halves_to_pairs(torch.arange(8)[:, None], 1).flatten().tolist()
    assert rows == [0, 4, 1, 5, 2, 6, 3, 7]
    x = torch.randn(1, 2, 3, 4)
    before = x.clone()
    Rotary(4, 8)(x, torch.arange(3))
    torch.testing.assert_close(x, before)
    half = Rotary(4, 600)(
        torch.ones(1, 1, 1, 4, dtype=torch.bfloat16), torch.tensor([599])
    )
    exact = Rotary(4, 600)(torch.ones(1, 1, 1, 4), torch.tensor([599]))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0.01, rtol=0)


def test_token_positions():
    assert token_positions(3, 2).tolist() == [2, 3, 4]
    assert token_positions(4, 0, torch.tensor([0, 3])).tolist() == [
        [0, 1, 2, 3],
        [0, 0, 0, 0],
    ]
    assert token_positions(1, 4, torch.tensor([0, 3])).tolist() == [[4], [1]]


# --- models ---------------------------------------------------------------------------


def test_parameter_counts():
    with torch.device("meta"):
        counts = {
            name: count_parameters(GPTModel(config))
            for name, config in GPT_CONFIGS.items()
        }
        plain = GPTConfig()
        assert count_parameters(GPTModel(plain)) == 124_412_160
        assert (
            count_parameters(GPTModel(replace(plain, tie_weights=False))) == 163_009_536
        )
        assert count_parameters(LlamaModel(SMOLLM2_135M)) == 134_515_008
    published = {
        "124M": 124_439_808,
        "355M": 354_823_168,
        "774M": 774_030_080,
        "1558M": 1_557_611_200,
    }
    assert {name: counts[name] for name in published} == published
    model = build(GPT)
    for parameter in model.blocks.parameters():
        parameter.requires_grad = False
    assert count_parameters(model, trainable=True) < count_parameters(model)


@each_model
@pytest.mark.parametrize("tie", [True, False])
def test_a_fresh_model_is_undecided(config, tie):
    torch.manual_seed(0)
    config = replace(config, vocab_size=2000, emb_dim=96, tie_weights=tie)
    model = (GPTModel if isinstance(config, GPTConfig) else LlamaModel)(config)
    token_ids = torch.randint(2000, (8, 20))
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
    model = build(config)
    token_ids = torch.randint(61, (2, 9))
    hidden = model.hidden_states(token_ids)
    assert hidden.shape == (2, 9, 24) and model.config == config
    torch.testing.assert_close(model.out_head(hidden), model(token_ids))
    for block in model.blocks:
        names = ("W_query", "W_key", "W_value", "out_proj")
        assert all(
            isinstance(getattr(block.attention, name), nn.Linear) for name in names
        )
        assert block(hidden).shape == hidden.shape
    cache = model.new_cache(2, 9)
    assert cache.layer(0).keys.shape[1] == config.n_kv_heads
    assert (
        len({module.config for module in model.modules() if hasattr(module, "config")})
        == 1
    )

    def stack(x):  # everything behind the embedding
        for block in model.blocks:
            x = block(x)
        return model.out_head(model.final_norm(x))

    assert future_leak(stack, 8, 24) == 0.0


@each_model
@pytest.mark.parametrize("tie", [True, False])
def test_replacing_the_head_leaves_the_table(config, tie):
    model = build(replace(config, tie_weights=tie))
    assert (model.out_head.weight is model.tok_emb.weight) == tie
    table = model.tok_emb.weight.detach().clone()
    model.out_head = nn.Linear(24, 2)
    assert model(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 2)
    nn.init.zeros_(model.out_head.weight)
    torch.testing.assert_close(model.tok_emb.weight, table)


@each_model
@few
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 19), min_size=1, max_size=4),
    st.data(),
)
def test_cached_equals_uncached_for_unequal_rows_up_to_the_end(
    config, seed, lengths, data
):
    model = build(config, seed)
    rows = [torch.randint(61, (1, n)) for n in lengths]
    longest = max(lengths)
    pad_left = torch.tensor([longest - n for n in lengths])
    padded = torch.cat(
        [F.pad(row, (longest - row.shape[1], 0), value=7) for row in rows]
    )
    full = model(padded, pad_left=pad_left)
    for row, logits, pad in zip(rows, full, pad_left.tolist(), strict=True):
        torch.testing.assert_close(logits[pad:], model(row)[0], atol=2e-4, rtol=1e-4)
    cache = model.new_cache(len(rows), longest)
    start = 0
    while start < longest:
        end = data.draw(st.integers(start + 1, longest))
        part = model(padded[:, start:end], cache, pad_left=pad_left)
        for row, (logits, expected) in enumerate(
            zip(part, full[:, start:end], strict=True)
        ):
            real = max(0, pad_left[row].item() - start)
            torch.testing.assert_close(
                logits[real:], expected[real:], atol=2e-4, rtol=1e-4
            )
        start = end
    for use_cache in (True, False):
        texts = generate(model, padded, 99, use_cache=use_cache, pad_left=pad_left)
        assert texts.shape == (len(rows), config.context_length)
        torch.testing.assert_close(texts[:, :longest], padded)
        if use_cache:
            first = texts
    assert torch.equal(first, texts)


@each_model
def test_generation_lengths(config):
    model = build(config)
    prompt = torch.randint(61, (2, 5))
    assert torch.equal(generate(model, prompt, 0), prompt)
    assert generate(model, prompt, 3).shape == (2, 8)
    full = torch.randint(61, (1, 20))
    assert torch.equal(generate(model, full, 5), full)
    expected = model(prompt)[:, -1].argmax(-1)
    assert torch.equal(generate(model, prompt, 1)[:, -1], expected)
    with pytest.raises(ValueError, match="21"):
        generate(model, torch.zeros(1, 21, dtype=torch.int64), 1)


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
    model = GPTModel(replace(GPT, drop_rate=0.5)).train()
    model(torch.zeros(1, 4, dtype=torch.int64))
    # Embeddings, and the end of both branches
    assert dropped == [0.5] * (1 + 2 * GPT.n_layers)
    assert rates == [0.5] * GPT.n_layers
    dropped.clear()
    rates.clear()
    model.eval()(torch.zeros(1, 4, dtype=torch.int64))
    assert set(dropped) == {0.0} == set(rates)


@each_model
def test_generation_uses_the_cache_scores_one_position_and_keeps_no_graph(
    config, monkeypatch
):
    model = build(config)
    lengths, scored = [], []
    real = model.hidden_states

    def hidden_states(ids, *args, **options):
        lengths.append(ids.shape[1])
        return real(ids, *args, **options)

    def note(_, inputs):
        scored.append((inputs[0].shape, inputs[0].requires_grad))

    monkeypatch.setattr(model, "hidden_states", hidden_states)
    model.out_head.register_forward_pre_hook(note)
    generate(model, torch.zeros(2, 5, dtype=torch.int64), 4)
    assert lengths == [5, 1, 1, 1] and set(scored) == {((2, 24), False)}
    lengths.clear()
    generate(model, torch.zeros(2, 5, dtype=torch.int64), 4, use_cache=False)
    assert lengths == [5, 6, 7, 8]


@each_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_cached_generation_in_other_dtypes(config, dtype):
    model = build(config).to(dtype)
    ids = torch.randint(61, (2, 6))
    with torch.no_grad():
        cache = model.new_cache(2, 6)
        parts = torch.cat([model(ids[:, :4], cache), model(ids[:, 4:], cache)], dim=1)
        assert parts.dtype == dtype
        atol = 1e-10 if dtype == torch.float64 else 0.5
        torch.testing.assert_close(parts, model(ids), atol=atol, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert generate(build(config), ids, 3).shape == (2, 9)


def test_the_published_shapes():
    gpt2 = {"124M": (768, 12, 12), "355M": (1024, 16, 24), "774M": (1280, 20, 36)}
    gpt2["1558M"] = (1600, 25, 48)
    for name, shape in gpt2.items():
        config = GPT_CONFIGS[name]
        assert (config.emb_dim, config.n_heads, config.n_layers) == shape
        assert (config.vocab_size, config.context_length) == (50_257, 1024)
        assert config.qkv_bias and config.tie_weights
    mini = GPT_CONFIGS["mini"]
    assert (mini.n_layers, mini.n_heads, mini.emb_dim, mini.context_length) == (
        16,
        8,
        512,
        512,
    )
    assert mini.vocab_size == 6400
    smol = (49_152, 8192, 576, 9, 3, 30, 1536, 100_000.0, 1e-5, True)
    assert (
        tuple(getattr(SMOLLM2_135M, field.name) for field in fields(SMOLLM2_135M))
        == smol
    )


@each_model
def test_tie_after_assigning_weights(config):
    model = build(replace(config, tie_weights=True))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert model.out_head.weight is not model.tok_emb.weight
    model.tie()
    assert model.out_head.weight is model.tok_emb.weight


def test_where_the_fast_product_is_used(monkeypatch, tmp_path):
    for model in (build(GPT), build(LLAMA)):
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        assert layers and all(type(layer) is Linear for layer in layers)
    calls = []

    def product(x, weight, bias=None):
        calls.append(1)
        return F.linear(x, weight, bias)

    monkeypatch.setattr(shared.gpt_model, "onednn_product", product)
    layer = Linear(3, 2)
    monkeypatch.setattr(shared.gpt_model, "USE_ONEDNN", False)
    layer(torch.ones(1, 3))
    assert not calls
    monkeypatch.setattr(shared.gpt_model, "USE_ONEDNN", True)
    layer(torch.ones(1, 3))
    with torch.no_grad():
        layer(torch.ones(1, 3))
    assert len(calls) == 2
    layer(torch.ones(0, 3))
    Linear(3, 2, dtype=torch.float64)(torch.ones(1, 3, dtype=torch.float64))
    assert len(calls) == 2
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.ones(1, 4))

    class Cpuinfo:
        def __init__(self, text):
            self.text = text

        def __call__(self, path):
            return self

        def exists(self):
            return bool(self.text)

        def read_text(self):
            return self.text

    monkeypatch.setattr(
        shared.gpt_model.torch.backends.mkl, "is_available", lambda: True
    )
    for text, processor, expected in [
        ("vendor_id : AuthenticAMD", "", True), ("vendor_id : GenuineIntel", "", False),
        ("", "AMD64 Family 25 Model 80 Stepping 0, AuthenticAMD", True),
        ("", "arm", False),
    ]:  # fmt: skip
        monkeypatch.setattr(shared.gpt_model, "Path", Cpuinfo(text))
        monkeypatch.setattr(
            shared.gpt_model.platform, "processor", lambda answer=processor: answer
        )
        has_it = hasattr(torch.ops.mkldnn, "_linear_pointwise")
        assert shared.gpt_model.onednn_is_faster() == (expected and has_it)


def test_the_fast_product_has_one_derivative_and_takes_strided_biases():
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of PyTorch has no oneDNN")
    x = torch.randn(2, 3, requires_grad=True)
    weight = torch.randn(4, 3, requires_grad=True)
    bias = torch.randn(8)[::2]
    torch.testing.assert_close(
        OneDNNLinear.apply(x, weight, bias), F.linear(x, weight, bias)
    )
    out = OneDNNLinear.apply(x, weight, None).square().sum()
    (grad,) = torch.autograd.grad(out, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@each_model
def test_bad_input_is_named(config):
    model = build(config)
    ids = torch.zeros(2, 5, dtype=torch.int64)
    cases = [
        (lambda: model(ids[0]), r"\(5,\)"),
        (lambda: model(ids[:, :0]), r"\(2, 0\)"),
        (
            lambda: model(torch.zeros(1, 21, dtype=torch.int64)),
            r"\(1, 21\) after 0 .* 20 tokens",
        ),
        (lambda: model(ids, pad_left=torch.tensor([1])), "pad_left"),
        (lambda: model(ids, model.new_cache(3, 5)), "cache was made for shape"),
        (lambda: model(ids, model.new_cache(2, 4)), "full"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (GPT, {"n_heads": 5}, "5 heads do not divide emb_dim = 24"),
        (GPT, {"vocab_size": 0}, "vocab_size .* at least 1, got 0"),
        (GPT, {"context_length": -1}, "context_length .* got -1"),
        (GPT, {"n_layers": 2.0}, "n_layers .* got 2.0"),
        (LLAMA, {"n_kv_heads": 4}, "4 kv heads do not divide 6"),
        (LLAMA, {"n_heads": 8, "emb_dim": 24}, "even head dimension, got 3"),
        (LLAMA, {"n_heads": 5}, "5 heads do not divide"),
        (LLAMA, {"hidden_dim": 0}, "hidden_dim"),
        (LLAMA, {"n_kv_heads": 0}, "n_kv_heads"),
        (GPT, {"n_layers": True}, "n_layers .* got True"),
    ],
)
def test_impossible_configurations_are_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **change)


def test_configurations_cannot_change():
    for config in (GPT, LLAMA):
        for field in fields(config):
            with pytest.raises(FrozenInstanceError):
                setattr(config, field.name, 1)
