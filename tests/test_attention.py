"""Chapter 3: the attention layer against its definition and against PyTorch's own."""

import re

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from shared.attention import (
    MultiHeadAttention,
    attend,
    attention_mask,
    future_leak,
    plot_attention,
    split_heads,
)
from shared.support import COURSE

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
shapes = st.tuples(
    st.integers(1, 3),  # B
    st.integers(1, 9),  # T
    st.integers(1, 4),  # heads
    st.integers(1, 5),  # numbers in a head
    st.booleans(),  # bias
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 2**31),  # seed
)
# no shrinking: a failure should show within seconds
many_shapes = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)


def values_and_gradients(layer, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the output of layer(x) and the gradients of a fixed function of it."""
    x = x.clone().requires_grad_()
    out = layer(x)
    probe = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    out.mul(probe).sum().backward()
    return [out.detach(), x.grad]


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        tolerance = TOLERANCE[a.dtype] * max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def by_definition(layer: MultiHeadAttention, x: torch.Tensor) -> torch.Tensor:
    """Attention with loops over texts, heads and queries, straight from the formula."""
    rows = []
    size = layer.head_dim
    for text in x:
        q, k, v = layer.W_query(text), layer.W_key(text), layer.W_value(text)  # (T, D)
        for t in range(len(text)):
            heads = []
            for start in range(0, q.shape[1], size):
                part = slice(start, start + size)
                scores = torch.stack([q[t, part] @ k[s, part] for s in range(t + 1)])
                weights = (scores / size**0.5).exp()
                weights = weights / weights.sum()
                heads.append(sum(w * v[s, part] for s, w in enumerate(weights)))
            rows.append(layer.out_proj(torch.cat(heads)))
    return torch.stack(rows).view(*x.shape[:2], -1)


@many_shapes
@given(shapes)
def test_equals_the_definition(shape):
    batch, n_tokens, heads, size, bias, dtype, seed = shape
    torch.manual_seed(seed)
    layer = MultiHeadAttention(5, heads * size, heads, qkv_bias=bias).to(dtype)
    x = torch.randn(batch, n_tokens, 5, dtype=dtype)
    assert_same(
        values_and_gradients(layer, x),
        values_and_gradients(lambda x: by_definition(layer, x), x),
    )


@many_shapes
@given(shapes)
def test_equals_torch_multihead_attention(shape):
    batch, n_tokens, heads, size, bias, dtype, seed = shape
    torch.manual_seed(seed)
    width = heads * size
    layer = MultiHeadAttention(width, width, heads, qkv_bias=bias).to(dtype)
    reference = nn.MultiheadAttention(width, heads, batch_first=True, dtype=dtype)
    parts = [layer.W_query, layer.W_key, layer.W_value]
    state = {
        "in_proj_weight": torch.cat([part.weight for part in parts]),
        "in_proj_bias": torch.cat([part.bias for part in parts])
        if bias
        else torch.zeros(3 * width, dtype=dtype),
        "out_proj.weight": layer.out_proj.weight,
        "out_proj.bias": layer.out_proj.bias,
    }
    reference.load_state_dict(state)
    hidden = torch.ones(n_tokens, n_tokens, dtype=torch.bool).triu(1)
    x = torch.randn(batch, n_tokens, width, dtype=dtype)
    assert_same(
        values_and_gradients(layer, x),
        values_and_gradients(lambda x: reference(x, x, x, attn_mask=hidden)[0], x),
    )


def test_gpt2_weights_fit_as_the_docstring_says():
    torch.manual_seed(0)
    width, heads, n_tokens = 12, 3, 6
    # GPT-2's Conv1D: x @ W
    c_attn, bias = torch.randn(width, 3 * width), torch.randn(3 * width)
    c_proj, proj_bias = torch.randn(width, width), torch.randn(width)
    layer = MultiHeadAttention(width, width, heads, qkv_bias=True)
    state = {"out_proj.weight": c_proj.T, "out_proj.bias": proj_bias}
    for name, w, b in zip(
        ("W_query", "W_key", "W_value"), c_attn.T.chunk(3), bias.chunk(3), strict=True
    ):
        state[f"{name}.weight"], state[f"{name}.bias"] = w, b
    layer.load_state_dict(state)
    x = torch.randn(2, n_tokens, width)
    q, k, v = (x @ c_attn + bias).split(width, dim=2)
    q, k, v = (t.view(2, n_tokens, heads, -1).transpose(1, 2) for t in (q, k, v))
    y = (
        F.scaled_dot_product_attention(q, k, v, is_causal=True)
        .transpose(1, 2)
        .flatten(2)
    )
    torch.testing.assert_close(layer(x), y @ c_proj + proj_bias)


@many_shapes
@given(shapes, st.integers(1, 3))
def test_heads_of_keys_may_serve_several_queries(shape, group):
    batch, n_tokens, heads, size, _, dtype, seed = shape
    torch.manual_seed(seed)
    queries = torch.randn(batch, heads * group, n_tokens, size, dtype=dtype)
    keys, values = torch.randn(2, batch, heads, n_tokens, size, dtype=dtype)
    repeated = (t.repeat_interleave(group, dim=1) for t in (keys, values))
    expected = F.scaled_dot_product_attention(queries, *repeated, is_causal=True)
    actual = attend(queries, keys, values)
    assert_same([split_heads(actual, size)], [expected])


# --- causality ------------------------------------------------------------------------


def test_nothing_leaks_from_the_future():
    assert future_leak(MultiHeadAttention(6, 4, n_heads=2), 8, 6) == 0.0


def attention_hiding(hidden: torch.Tensor):
    """Return self-attention of the inputs that does not look where `hidden` is True."""
    return lambda x: (x @ x.mT).masked_fill(hidden, -torch.inf).softmax(dim=-1) @ x


def test_the_leak_test_catches_broken_masks():
    future = torch.ones(8, 8, dtype=torch.bool).triu(1)
    assert future_leak(attention_hiding(future), 8, 6) == 0.0
    for broken in (future.triu(2), torch.zeros_like(future)):
        assert future_leak(attention_hiding(broken), 8, 6) > 1e-5
    assert future_leak(lambda x: x - x.mean(dim=1, keepdim=True), 5, 3) > 0.01
    assert future_leak(lambda x: x.flip(1), 5, 3) > 0.01
    assert future_leak(lambda x: x.cumsum(1), 5, 3) == 0.0
    last = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]).view(1, 5, 1)
    # Only 4 sees 5
    assert future_leak(lambda x: x + (x * last).roll(-1, dims=1), 5, 3) > 0.01
    with pytest.raises(ValueError, match="not finite"):
        future_leak(lambda x: x.cumsum(1) * float("nan"), 5, 3)
    with pytest.raises(ValueError):  # one token has no future that could leak
        future_leak(lambda x: x, 1, 3)


def test_dropout_only_in_training():
    torch.manual_seed(0)
    layer = MultiHeadAttention(8, 8, n_heads=2, dropout=0.5)
    plain = MultiHeadAttention(8, 8, n_heads=2)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 16, 8)
    assert not torch.allclose(layer(x), layer(x))
    torch.testing.assert_close(layer.eval()(x), plain(x))
    layer.train()
    # What is kept is scaled up; if it were not, the mean would be 0.36 away
    mean = torch.stack([layer(x) for _ in range(1_000)]).mean(0)
    torch.testing.assert_close(mean, plain(x), atol=0.15, rtol=0)


def test_the_layer_follows_its_input_to_another_device():
    layer = MultiHeadAttention(6, 4, n_heads=2).to("meta")
    # Nothing that could be left behind, or fill a checkpoint
    assert not list(layer.buffers())
    x = torch.empty(2, 5, 6, device="meta")
    pad_left = torch.empty(2, dtype=torch.int64, device="meta")
    for mask in (None, attention_mask(5, 5, pad_left, x.device)):
        assert layer(x, mask).device.type == "meta"
        assert layer.attention_weights(x, mask).device.type == "meta"


# --- padding --------------------------------------------------------------------------


@many_shapes
@given(shapes, st.data())
def test_a_row_does_not_notice_its_padding_or_its_neighbours(shape, data):
    batch, _, heads, size, bias, dtype, seed = shape
    torch.manual_seed(seed)
    lengths = data.draw(st.lists(st.integers(1, 7), min_size=batch, max_size=batch))
    longest = max(lengths) + data.draw(st.integers(0, 2))
    layer = MultiHeadAttention(6, heads * size, heads, qkv_bias=bias).to(dtype)
    rows = [torch.randn(1, n, 6, dtype=dtype) for n in lengths]
    padded = torch.cat(
        [
            F.pad(row, (0, 0, longest - n, 0), value=50.0)
            for row, n in zip(rows, lengths, strict=True)
        ]
    )
    pad_left = torch.tensor([longest - n for n in lengths])
    mask = attention_mask(longest, longest, pad_left)
    together = layer(padded, mask).detach()
    assert together.isfinite().all()
    weights = layer.attention_weights(padded, mask)
    for row, n, out, weight in zip(rows, lengths, together, weights, strict=True):
        assert_same([out[longest - n :]], [layer(row).detach()[0]])
        assert weight[:, longest - n :, : longest - n].abs().sum() == 0


@many_shapes
@given(shapes)
def test_shown_weights_are_the_used_ones(shape):
    batch, n_tokens, heads, size, bias, dtype, seed = shape
    torch.manual_seed(seed)
    layer = MultiHeadAttention(6, heads * size, heads, qkv_bias=bias).to(dtype)
    x = torch.randn(batch, n_tokens, 6, dtype=dtype)
    weights = layer.attention_weights(x)
    assert weights.shape == (batch, heads, n_tokens, n_tokens)
    values = layer.W_value(x).view(batch, n_tokens, heads, size).transpose(1, 2)
    out = layer.out_proj((weights @ values).transpose(1, 2).flatten(2))
    assert_same([out.detach()], [layer(x).detach()])


def test_masks_by_hand():
    assert attention_mask(4, 4) is None and attention_mask(1, 9) is None
    assert attention_mask(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    padded = attention_mask(3, 3, torch.tensor([0, 2]))
    assert padded.shape == (2, 1, 3, 3)
    assert padded[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert padded[1, 0].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_training_memory_grows_linearly():
    def kept_bytes(n_tokens):
        layer = MultiHeadAttention(32, 32, n_heads=4)
        sizes = {}
        x = torch.randn(1, n_tokens, 32)

        def note(tensor):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = layer(x)
        out.sum().backward()
        weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
        return sum(size for pointer, size in sizes.items() if pointer not in weights)

    small, middle, large = kept_bytes(512), kept_bytes(1024), kept_bytes(2048)
    # Twice as much for twice the text; with a T x T matrix it would head for four times
    assert middle < 2.5 * small and large < 2.5 * middle
    assert small > 512 * 32 * 4  # the counter does count


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MultiHeadAttention(8, 10, 3), "3 heads .* d_out = 10"),
        (lambda: MultiHeadAttention(8, 8, 0), "0 heads"),
        (lambda: attention_mask(3, 2), "3 queries cannot be the last of 2 keys"),
        (lambda: attention_mask(0, 2), "0 queries"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_plots_draw_what_they_are_given():
    weights = torch.eye(3).repeat(5, 1, 1)
    figure = plot_attention(weights, ["a", "b", "c"])
    images = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    assert len(images) >= 5 and (images[0] == torch.eye(3).numpy()).all()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [
        "a",
        "b",
        "c",
    ]
    with pytest.raises(ValueError):
        plot_attention(weights, ["a", "b"])
    plt.close("all")


@pytest.mark.parametrize("sizes", [(4, 4, 2.0), (4, 4, 0.5), (4.0, 4, 2), (4, 4.0, 2)])
def test_sizes_are_whole_numbers(sizes):
    with pytest.raises(ValueError, match="whole number|cannot share out"):
        MultiHeadAttention(*sizes)


@pytest.mark.parametrize("n_tokens", [1, 0, -4, 2.5])
def test_a_leak_needs_two_tokens(n_tokens):
    with pytest.raises(ValueError, match=f"n_tokens .* least 2, got {n_tokens}"):
        future_leak(lambda x: x, n_tokens, 3)


# --- the figures beside the cells -----------------------------------------------------

CHAPTER = COURSE / "ch03_attention"


def example() -> dict:
    """Run the notebook's cells that write the sentence and W_query by hand."""
    cells = nbformat.read(CHAPTER / "ch03_attention.ipynb", as_version=4).cells
    sources = {cell.id: cell.source for cell in cells}
    names = {"torch": torch}
    for cell_id in "ch03-201", "ch03-203", "ch03-213", "ch03-215":
        exec(sources[cell_id], names)
    return names


def in_figure(name: str, kind: str) -> list[float]:
    """Return the numbers of one kind in a figure, in the order in which they stand."""
    svg = (CHAPTER / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    return [float(n) for n in re.findall(rf'class="{kind}">([-\d.]+)<', svg)]


def assert_drawn(name: str, kind: str, numbers: torch.Tensor):
    drawn = torch.tensor(in_figure(name, kind))
    torch.testing.assert_close(drawn, numbers.float(), atol=0.00501, rtol=0)


def test_figures_carry_the_numbers_of_the_sentence(capsys):
    names = example()
    x, query = names["x"], names["query"]
    assert_drawn("scores_to_context", "score", x @ query)
    assert_drawn("scores_to_context", "weight", (x @ query).softmax(0))
    assert_drawn("scores_to_context", "context", (x @ query).softmax(0) @ x)
    scores = names["queries"] @ names["keys"].T / 2
    past = torch.ones(8, 8, dtype=torch.bool).tril()
    weights = scores.masked_fill(~past, -torch.inf).softmax(dim=-1)
    assert_drawn("causal_mask", "score", scores[past])
    assert_drawn("causal_mask", "weight", weights[past])


def test_figure_of_the_catalogue_looks_up_for_it():
    names = example()
    x, queries, keys, values = (names[n] for n in ("x", "queries", "keys", "values"))
    scores = keys @ queries[5]
    weights = scores.softmax(dim=0)
    figure = "query_key_value"
    for kind in "query", "slip":
        assert_drawn(figure, kind, queries[5])
    assert_drawn(figure, "x", x[5])
    assert_drawn(figure, "ownkey", keys[5])
    assert_drawn(figure, "ownvalue", values[5])
    assert_drawn(figure, "key", keys.flatten())
    assert_drawn(figure, "value", values.flatten())
    assert_drawn(figure, "score", scores)
    assert_drawn(figure, "weight", weights)
    assert_drawn(figure, "context", weights @ values)


def test_figure_of_the_state_carries_the_numbers_of_both_readers():
    names = example()
    query, keys, values = names["queries"][5], names["keys"][:6], names["values"][:6]
    products = keys[:, :, None] * values[:, None, :]  # (T, K, K), one for each word
    states = products.cumsum(dim=0)
    weights = (keys @ query / 2).softmax(dim=0)
    figure = "summary_or_look_back"
    assert_drawn(figure, "state", states.flatten())
    assert_drawn(figure, "reads", query @ states[-1])
    assert_drawn(figure, "weight", weights)
    assert_drawn(figure, "context", weights @ values)


def test_figure_of_the_heads_shows_what_view_and_transpose_do():
    numbers = torch.arange(12).view(1, 2, 6)
    drawn = torch.tensor(in_figure("multi_head_shapes", "step3")).view(2, 3, 2)
    heads = split_heads(numbers, 2)[0]  # (H, T, K)
    assert torch.equal(drawn.long(), heads.transpose(0, 1))  # drawn token by token


def test_the_leak_test_knows_its_input_only():
    def shy_leak(x):
        return x + F.relu(x.mean(dim=1, keepdim=True) - 5)

    assert future_leak(shy_leak, 6, 4) == 0.0  # not active there
    early, late = torch.zeros(2, 1, 3, 1)
    late[0, 2] = 30.0
    assert not shy_leak(early)[0, 0].equal(shy_leak(late)[0, 0])
