"""Chapter 1: the counted model against counting by hand, the helpers."""

import math
import random

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.intro import (
    BigramModel,
    check_environment,
    get_device,
    set_seed,
    use_course_style,
)


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


def test_samples_follow_the_table_and_the_seed():
    model = BigramModel().fit([0, 1, 0, 2, 0, 1, 0, 1, 2], vocab_size=3, alpha=0)
    ids = model.sample(0, 30_000, torch.Generator().manual_seed(0))
    assert ids == model.sample(0, 30_000, torch.Generator().manual_seed(0))
    assert ids != model.sample(0, 30_000, torch.Generator().manual_seed(1))
    drawn = BigramModel().fit([0, *ids], vocab_size=3, alpha=0).probabilities()
    torch.testing.assert_close(drawn, model.probabilities(), atol=0.02, rtol=0)
    assert drawn[model.probabilities() == 0].max() == 0  # the impossible never happens


def test_bad_input_is_named():
    for ids, message in (
        ([1], r"2 or more ids .* \[1\]"),
        ([[0, 1], [1, 0]], r"a row of .* \[2, 2\]"),
        ([0.9, 1.7], "ids is needed, got torch.float32"),
        ([0, 5], "0 to 5 are outside 0 ... 4"),
        ([-1, 0], "-1"),
    ):
        with pytest.raises(ValueError, match=message):
            BigramModel().fit(ids, vocab_size=5)
    for alpha in -1, math.nan:
        with pytest.raises(ValueError, match=f"alpha must be at least 0, got {alpha}"):
            BigramModel().fit([0, 1], vocab_size=5, alpha=alpha)
    with pytest.raises(ValueError, match="id 1 was never followed"):
        BigramModel().fit([0, 1], vocab_size=2, alpha=0).sample(0, 5)


def test_environment_check_says_what_is_missing(tmp_path, capsys):
    pins = tmp_path / "requirements.txt"
    pins.write_text("# comment\nno-such-package==1.0\ntorch==0.0.1\n-e .\n")
    problems = " ".join(check_environment(pins))
    assert (
        "no-such-package is missing" in problems
        and "pip install no-such-package==1.0" in problems
    )
    assert "made with 0.0.1" in problems
    assert "no-such-package" in capsys.readouterr().out


def test_helpers():
    set_seed(5)
    first = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    set_seed(5)
    assert first == (
        torch.rand(3).tolist(),
        np.random.rand(3).tolist(),
        random.random(),
    )
    torch.zeros(1, device=get_device())
    with mpl.rc_context():
        use_course_style()
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"][0] == "#0072B2"
