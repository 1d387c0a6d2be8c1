"""Chapter 3: token by token, with a cache, is the same as all at once."""

import re

import nbformat
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from shared.attention import MultiHeadAttention, attention_mask
from shared.cache import KVCache, LayerCache
from shared.support import COURSE

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def parts_of(n_tokens: int, cuts: list[int]) -> list[slice]:
    """Return n_tokens cut into neighbouring parts."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < n_tokens}), n_tokens]
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]


# no shrinking: a failure should show within seconds
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)
@given(
    batch=st.integers(1, 3),
    n_tokens=st.integers(1, 9),
    n_heads=st.integers(1, 4),
    head_dim=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    cuts=st.lists(st.integers(1, 8), max_size=8),
    padded=st.booleans(),
    data=st.data(),
)
def test_cached_pass_equals_full_pass(
    batch, n_tokens, n_heads, head_dim, dtype, cuts, padded, data
):
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    layer = MultiHeadAttention(6, n_heads * head_dim, n_heads).to(dtype).eval()
    x = torch.randn(batch, n_tokens, 6, dtype=dtype)
    padding = st.lists(st.integers(0, n_tokens - 1), min_size=batch, max_size=batch)
    pad_left = torch.tensor(data.draw(padding)) if padded else None
    full = layer(x, attention_mask(n_tokens, n_tokens, pad_left))
    cache = KVCache(
        1, batch, n_heads, n_tokens, head_dim, pad_left=pad_left, dtype=dtype
    )
    for part in parts_of(n_tokens, cuts):
        n_new = part.stop - part.start
        mask = attention_mask(n_new, cache.length + n_new, cache.pad_left)
        out = layer(x[:, part], mask, cache.layers[0])
        torch.testing.assert_close(out, full[:, part], atol=TOLERANCE[dtype], rtol=0)
    assert cache.length == n_tokens


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_without_a_mask_several_new_tokens_are_causal(cut):
    torch.manual_seed(0)
    layer = MultiHeadAttention(6, 8, n_heads=2)
    x = torch.randn(2, 7, 6)
    cache = KVCache(1, 2, 2, 7, 4).layers[0]
    out = [layer(part, cache=cache) for part in (x[:, :cut], x[:, cut:])]
    torch.testing.assert_close(torch.cat(out, dim=1), layer(x))


def test_a_cache_by_hand():
    cache = KVCache(2, 1, 1, 3, 2)
    keys = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], requires_grad=True)
    seen = cache.layers[1].append(keys, keys + 10)
    assert [t.tolist() for t in seen] == [
        [[[[1, 2], [3, 4]]]],
        [[[[11, 12], [13, 14]]]],
    ]
    assert not any(t.requires_grad for t in seen)
    more, _ = cache.layers[1].append(5 * keys[:, :, :1], keys[:, :, :1])
    assert more.tolist() == [[[[1, 2], [3, 4], [5, 10]]]]
    # Handed out without a copy
    assert more.data_ptr() == seen[0].data_ptr() == cache.layers[1].keys.data_ptr()
    assert [layer.length for layer in cache.layers] == [0, 3]
    assert cache.length == 0  # that of the first layer


def test_layers_do_not_share_their_room():
    cache = KVCache(3, 2, 2, 4, 5)
    for n, layer in enumerate(cache.layers):
        numbers = torch.full((2, 2, 4, 5), float(n))
        layer.append(numbers, -numbers)
    for n, layer in enumerate(cache.layers):
        assert layer.keys.unique().tolist() == [n]
        assert layer.values.unique().tolist() == [-n]


def test_dtype_and_device_are_those_asked_for():
    pad_left = torch.tensor([0, 3])
    cache = KVCache(
        1, 2, 2, 4, 5, pad_left=pad_left, dtype=torch.bfloat16, device="meta"
    )
    tensors = [cache.layers[0].keys, cache.layers[0].values]
    assert {t.dtype for t in tensors} == {torch.bfloat16}
    assert {t.device.type for t in [*tensors, cache.pad_left]} == {"meta"}
    assert {t.shape for t in tensors} == {(2, 2, 4, 5)}


# --- refusals -------------------------------------------------------------------------


def filled() -> LayerCache:
    """Return a cache for 4 tokens with 3 in it: 0, 1 and 2, in every number."""
    cache = LayerCache(torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 4, 5))
    numbers = torch.arange(3.0)[:, None].expand(1, 2, 3, 5)
    cache.append(numbers, numbers)
    return cache


@pytest.mark.parametrize(
    ("n_new", "dtype", "message"),
    [
        (2, torch.float32, "full: 3 of 4 tokens used, 2 more"),
        (1, torch.float64, "made for .*float32, 1, 2.*, got .*float64, 1, 2"),
    ],
)
def test_a_refused_append_changes_nothing(n_new, dtype, message):
    cache = filled()
    new = torch.ones(1, 2, n_new, 5, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        cache.append(new, new)
    assert cache.length == 3
    last = torch.full((1, 2, 1, 5), 9.0)
    for seen in cache.append(last, last):
        assert seen[0, 1, :, 4].tolist() == [0, 1, 2, 9]


def test_a_full_cache_takes_no_further_token():
    cache = filled()
    one = torch.ones(1, 2, 1, 5)
    cache.append(one, one)
    with pytest.raises(ValueError, match="full: 4 of 4 tokens used, 1 more"):
        cache.append(one, one)


@pytest.mark.parametrize("wrong", range(5))
def test_sizes_below_one_are_refused(wrong):
    sizes = [2, 2, 2, 2, 2]
    sizes[wrong] = 0
    with pytest.raises(ValueError, match=r"at least 1, got \(.*0.*\)"):
        KVCache(*sizes)


@pytest.mark.parametrize(
    "pad_left",
    [[0, 4], [-1, 0], [0], [0, 0, 0], [[0, 0]], 0, [0.0, 1.5], [0.0, 1.0]],
    ids=str,
)
def test_padding_that_does_not_fit_is_refused(pad_left):
    with pytest.raises(ValueError, match="2 numbers from 0 to 3, got"):
        KVCache(1, 2, 2, 4, 5, pad_left=torch.tensor(pad_left))


def test_one_row_is_not_copied_to_all():
    cache = LayerCache(torch.zeros(3, 2, 4, 5), torch.zeros(3, 2, 4, 5))
    one = torch.ones(1, 2, 1, 5)
    with pytest.raises(ValueError, match="made for .*3, 2.*, got .*1, 2"):
        cache.append(one, one)
    assert cache.length == 0


def test_figure_of_the_padding_shows_the_notebooks_prompts():
    folder = COURSE / "ch03_attention"
    cells = nbformat.read(folder / "ch03_cache.ipynb", as_version=4).cells
    (source,) = (cell.source for cell in cells if cell.id == "ch03c-019")
    (line,) = (line for line in source.split("\n") if line.startswith("prompts = "))
    names: dict = {}
    exec(line, names)
    rows = [prompt.split() for prompt in names["prompts"]]
    svg = (folder / "figures" / "left_padding.svg").read_text(encoding="utf-8")
    drawn = [re.findall(rf'class="row{n}">([^<]*)<', svg) for n in range(3)]
    assert drawn == rows
    padding = [6 - len(row) for row in rows]
    assert re.findall(r'class="pad_left">(\d)<', svg) == [str(n) for n in padding]
    assert f">pad_left = {padding}<" in svg and svg.count(">pad<") == sum(padding)
