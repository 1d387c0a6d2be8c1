"""Chapter 1: the counted model against counting by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.intro import BigramModel


def test_counts_and_cross_entropy_by_hand():
    # "abab b": a->b twice, b->a once, b->b once
    model = BigramModel().fit([0, 1, 0, 1, 1], vocab_size=2, alpha=0)
    assert model.probabilities().tolist() == [[0.0, 1.0], [0.5, 0.5]]
    expected = (math.log(1) + math.log(2) + math.log(1) + math.log(2)) / 4
    assert model.cross_entropy([0, 1, 0, 1, 1]) == pytest.approx(expected, abs=1e-12)


def test_smoothing_by_hand():
    model = BigramModel().fit([0, 1, 0], vocab_size=3, alpha=1)
    assert model.probabilities()[0].tolist() == pytest.approx([1 / 4, 2 / 4, 1 / 4])
    # Never seen: uniform
    assert model.probabilities()[2].tolist() == pytest.approx([1 / 3] * 3)
    assert BigramModel().fit([0, 1, 0], 3, alpha=0).cross_entropy([0, 2]) == math.inf


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=60),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_equals_counting_with_a_dictionary(ids, alpha):
    model = BigramModel().fit(ids, vocab_size=7, alpha=alpha)
    total = 0.0
    for a, b in zip(ids[:-1], ids[1:], strict=True):
        pairs = sum(x == a and y == b for x, y in zip(ids[:-1], ids[1:], strict=True))
        total -= math.log((pairs + alpha) / (sum(x == a for x in ids[:-1]) + 7 * alpha))
    assert model.cross_entropy(ids) == pytest.approx(total / (len(ids) - 1), abs=1e-12)
    table = model.probabilities()
    from_table = -sum(
        math.log(table[a, b]) for a, b in zip(ids[:-1], ids[1:], strict=True)
    )
    assert from_table == pytest.approx(total, abs=1e-11)


def wheel_of_fortune(table: list[list[float]], start: int, numbers: list[float]):
    """Write with a table by hand: in whose stretch does each number fall?"""
    ids = [start]
    for number in numbers:
        row = table[ids[-1]]
        edge = 0.0
        for following in range(len(row)):
            edge += row[following]
            if number < edge:
                ids.append(following)
                break
    return ids[1:]


def test_samples_follow_the_table_and_the_seed():
    model = BigramModel().fit([0, 1, 0, 2, 0, 1, 0, 1, 2], vocab_size=3, alpha=0)
    ids = model.sample(0, 3_000, torch.Generator().manual_seed(0))
    numbers = torch.rand(
        3_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    table = model.probabilities().tolist()
    assert ids == wheel_of_fortune(table, 0, numbers.tolist())
    assert ids != model.sample(0, 3_000, torch.Generator().manual_seed(1))
    drawn = BigramModel().fit([0, *ids], vocab_size=3, alpha=0).probabilities()
    assert drawn[model.probabilities() == 0].max() == 0  # the impossible never happens


def test_bad_input_is_named():
    for ids, message in (
        ([1], r"2 or more ids .* \[1\]"),
        ([[0, 1], [1, 0]], r"a row of .* \[2, 2\]"),
        ([0.9, 1.7], r"ids is needed, got \[2\] of torch.float32"),
        ([0, 5], "0 to 5 are outside 0 ... 4"),
        ([-1, 0], "-1"),
    ):
        with pytest.raises(ValueError, match=message):
            BigramModel().fit(ids, vocab_size=5)
    for alpha in -1, math.nan:
        with pytest.raises(ValueError, match=f"alpha must be at least 0, got {alpha}"):
            BigramModel().fit([0, 1], vocab_size=5, alpha=alpha)
    with pytest.raises(ValueError, match="nothing ever followed id 1"):
        BigramModel().fit([0, 1], vocab_size=2, alpha=0).sample(0, 5)
