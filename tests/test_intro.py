"""Chapter 1: the counted model against counting by hand."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.intro import BigramModel, spin
from shared.support import COURSE


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
    with pytest.raises(ValueError, match="nothing ever followed this id"):
        BigramModel().fit([0, 1], vocab_size=2, alpha=0).sample(0, 5)


# --- the figures carry the numbers of the cells beside them ---------------------------

TEXT = "then the hen ate"
LETTERS = sorted(set(TEXT))
IDS = torch.tensor([LETTERS.index(letter) for letter in TEXT])
COUNTS = BigramModel().fit(IDS, 6, alpha=0).counts  # (6, 6)
P = BigramModel().fit(IDS, 6, alpha=0).probabilities()


def figure(name: str) -> list[str]:
    """Return the texts in a figure of the chapter, in the order of the file."""
    svg = (COURSE / "ch01_intro" / "figures" / f"{name}.svg").read_text("utf-8")
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def numbers(name: str) -> list[float]:
    """Return the texts in a figure that are numbers."""
    found = [text.replace("−", "-") for text in figure(name)]
    return [float(text) for text in found if re.fullmatch(r"-?[\d.]+", text)]


def rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 2) + 0.0 for value in values.flatten().tolist()]


def test_figures_of_shapes_hold_the_counts():
    flat = COUNTS.flatten().tolist()
    edges = [0, 6, 12, 18, 24, 30]
    assert sorted(numbers("view")) == sorted([*flat, *edges, 16, *flat])
    assert numbers("view")[-36:] == flat and flat[16] == COUNTS[2, 4] == 2
    t, h, e, n = (LETTERS.index(letter) for letter in "then")
    looked_up = [COUNTS[e], COUNTS[e, n], COUNTS[[t, h]], COUNTS[[t, h, e], [h, e, n]]]
    expected = [v for part in looked_up for v in (*flat, *part.flatten().tolist())]
    assert numbers("index") == expected
    totals = COUNTS.sum(dim=1).tolist()
    right = [total for total in totals for _ in range(3)]
    wrong = [total for total in totals for _ in range(3)]
    assert numbers("keepdim") == [*flat, *right, *flat, *wrong]
    assert "row e:  1 / 3 and 2 / 3  =  0.33 and 0.67" in figure("keepdim")
    picked = COUNTS[torch.tensor([1, 2])[:, None], torch.tensor([3, 4, 5])]
    assert numbers("none")[-6:] == picked.flatten().tolist()
    assert numbers("none")[-42:-6] == flat


def test_figure_of_the_wheel_spins_the_same_numbers():
    generator, again = (torch.Generator().manual_seed(429) for _ in range(2))
    written, expected = "t", []
    for _ in range(7):
        row = P[LETTERS.index(written[-1])]
        number = torch.rand(1, generator=again, dtype=torch.float64).item()
        written += LETTERS[spin(row, generator)]
        expected.append((f"{number:.2f}", written.replace(" ", "␣")))
    seen = figure("wheel")
    assert [text for text in seen if re.fullmatch(r"0\.\d\d", text)] == [
        number for number, _ in expected
    ]
    for _, so_far in expected:
        assert so_far in seen


def test_figure_of_gradient_descent_shows_its_steps():
    row = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([row], lr=1.0)
    seen, gradients = {}, []
    for step in range(101):
        seen[step] = rounded(row.softmax(dim=0).detach())
        loss = -row.softmax(dim=0)[[0, 4, 4]].log().mean()
        optimizer.zero_grad()
        loss.backward()
        gradients.append(rounded(row.grad))
        optimizer.step()
    expected = [0.0, 0.33, 0.67, *gradients[0]]
    for step in 0, 1, 3, 10, 30, 100:
        expected += [step, *seen[step]]
    assert numbers("descent") == [*expected, *rounded(P[2])]


def test_figure_of_the_neural_ngram_is_worked_out():
    points = torch.tensor([[0.0, 1], [1, 0], [1, 0], [-1, 0], [-1, 0], [-1, 0]])
    six = points[[5, 3, 2]].view(6)
    hidden = torch.tensor([1.0, -1.0, 2.0])  # e is a vowel, no consonant; t and h are
    W2 = torch.tensor([[1, 0, 0, 0, 2, 1], [1, 2, 2, 0, 0, 0], [1, 0, 0, 0, 0.5, 0]])
    scores = hidden.relu() @ W2
    by_letter = [v for x in six.view(3, 2).tolist() for v in (*x, *x)]
    outcome = zip(scores.tolist(), rounded(scores.softmax(dim=0)), strict=True)
    expected = [*by_letter, 1, 0, 2, *(v for pair in outcome for v in pair)]
    assert numbers("neural_ngram") == expected
    assert "ReLU(−1)" in figure("neural_ngram")
