"""What the exercises of chapter 1 are checked with.

It gives the solutions away: try first.
"""

from collections import Counter
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from shared.support.exercises import Checks, Exercise, Mistake, refuses

REVIEW = "readers' review of chapter 1: indexing, view and keepdim get lost"
NEG_INF = float("-inf")

# --- 1.1 -----------------------------------------------------------------------------

counts, points = torch.zeros(71, 71), torch.zeros(71, 2)
rows, columns = torch.tensor([4, 9, 2]), torch.tensor([1, 0, 5])
SHAPES = {
    "row": tuple(counts[7].shape),
    "pairs": tuple(counts[rows, columns].shape),
    "grid": tuple(counts[rows[:, None], columns].shape),
    "totals": tuple(counts.sum(dim=1, keepdim=True).shape),
    "flat": tuple(points[torch.zeros(32, 3, dtype=torch.int64)].flatten(1).shape),
}
EXERCISE_1 = Exercise(
    "1.1",
    "five shapes",
    SHAPES,
    mistakes=[
        Mistake(
            SHAPES | {"row": (1, 71)},
            "In `row`, `counts[7]` asks for one row with a number. Does an axis of "
            "rows stay behind?",
            "a trial of this exercise",
        ),
        Mistake(
            SHAPES | {"pairs": (3, 3), "grid": (3,)},
            "`pairs` and `grid` have changed places: which of the two has the `[:, "
            "None]`, so that one list stands up?",
            "a trial of this exercise",
        ),
        Mistake(
            SHAPES | {"pairs": (3, 3)},
            "In `pairs`, two lists of the same length are read together, as in "
            "`counts[[t, h, e], [h, e, n]]`. How many numbers came out there?",
            "numpy-discussion, April 2013: no grid",
        ),
        Mistake(
            SHAPES | {"pairs": (3, 2)},
            "`pairs` asks for three pairs (row, column). How many numbers does the "
            "table hold at one such place?",
            "a trial of this exercise",
        ),
        Mistake(
            SHAPES | {"grid": (3,)},
            "In `grid`, `[:, None]` has made (3, 1) of one list. What does "
            "broadcasting make of it and the other, (3,)?",
            "a trial of this exercise",
        ),
        Mistake(
            SHAPES | {"grid": (3, 1, 3)},
            "In `grid`, (3, 1) and (3,) are not put together, but stretched until they "
            "fit. To which shape?",
            "a trial of this exercise",
        ),
        Mistake(
            SHAPES | {"totals": (71,)},
            "In `totals`, one axis is summed up. What does `keepdim=True` leave in its "
            "place?",
            "makemore's lecture: P / P.sum(1)",
        ),
        Mistake(
            SHAPES | {"totals": (1, 71)},
            "In `totals`, `dim=1` adds up the numbers of each row. Which of the two "
            "axes shrinks to length 1?",
            "a learner's trial of ours",
        ),
        Mistake(
            SHAPES | {"flat": (192,)},
            "In `flat`, `flatten(1)` lays out all axes from number 1 on. Is the batch, "
            "axis 0, among them?",
            REVIEW,
        ),
        Mistake(
            SHAPES | {"flat": (32, 3, 2)},
            "In `flat`, (32, 3, 2) is what the lookup gives. What does `flatten(1)` do "
            "with the last two axes?",
            REVIEW,
        ),
        Mistake(
            SHAPES | {"flat": (32, 3)},
            "In `flat`, every id of a context brings a point of two numbers.",
            "a trial of this exercise",
        ),
    ],
    notice="`grid` and `pairs` have the same two lists in them; only `[:, None]` makes "
    "a grid of one and a row of pairs of the other.",
)

# --- 1.2 -----------------------------------------------------------------------------


def torch_perplexity(P):
    """Return torch's own loss of one class of N cases, and its exponential."""
    return F.nll_loss(P.log()[:, None], torch.zeros(len(P), dtype=torch.int64)).exp()


def one_number(answer, P):
    """Judge a tensor of one number, of either shape; a float is none."""
    found = answer(P)
    return found.view(found.shape or 1) if torch.is_tensor(found) else found


EXERCISE_2 = Exercise(
    "1.2",
    "perplexity",
    torch_perplexity,
    judge=one_number,
    differentiable=True,
    cases={
        "1/2, 1/4, 1/8": (torch.tensor([0.5, 0.25, 0.125]),),
        "sure and right": (torch.ones(3),),
        "2,000 letters, 0.1 each": (torch.full((2000,), 0.1),),
        "called impossible, and came": (torch.tensor([0.5, 0.0]),),
    },
    mistakes=[
        Mistake(
            lambda P: -P.log().mean(),
            "That is the cross-entropy, in nats. Perplexity turns it back into a "
            "number of choices: what undoes a logarithm?",
            "stats.stackexchange.com 345507",
        ),
        Mistake(
            lambda P: 2 ** -P.log().mean(),
            "`2 **` undoes a logarithm with base 2. Which base does `log` have here?",
            "stats.stackexchange.com 345507",
        ),
        Mistake(
            lambda P: (-P.log2().mean()).exp(),
            "`log2` counts in bits, and `exp` undoes a logarithm with base e. Which "
            "two belong together?",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda P: (-(P * P.log()).sum()).exp(),
            "You weigh each price with the probability that the model gave. These "
            "letters came, once each: all of them count the same.",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda P: (1 / P).mean(),
            "You average a perplexity for each letter. The mean comes first, over the "
            "prices, and then the exponential.",
            "averages over batches, PTB threads",
        ),
        Mistake(
            lambda P: (-P.log().sum()).exp(),
            "The price of the whole text. Longer texts would always be worse: sum, or "
            "mean?",
            "summed losses, PTB threads",
        ),
        Mistake(
            lambda P: P.prod() ** (-1 / len(P)),
            "On paper that is right. But multiply 2,000 numbers of 0.1: what is left "
            "of it in float32? This is why one adds logarithms.",
            "section 1.4: why a logarithm",
        ),
        Mistake(
            lambda P: P.log().mean().exp(),
            "Yours grows with P: the better model gets the larger number. The price of "
            "a letter is −log P. Where is the minus?",
            "a trial of this exercise",
        ),
        Mistake(
            lambda P: 1 / P.mean(),
            "You take the mean of the probabilities. What is averaged are the prices.",
            "a trial of this exercise",
        ),
    ],
    notice="One letter that was called impossible makes the whole text infinitely bad: "
    "this is what smoothing is for.",
)

# --- 1.3 -----------------------------------------------------------------------------


def softmax_with(scores, shift=lambda z: z.amax(-1, keepdim=True), axis=-1, keep=True):
    """Return a softmax that subtracts something and sums along some axis."""
    powers = (scores - shift(scores)).exp()
    return powers / powers.sum(dim=axis, keepdim=keep)


EXERCISE_3 = Exercise(
    "1.3",
    "softmax",
    partial(torch.softmax, dim=-1),
    differentiable=True,
    cases={
        "three scores": (torch.tensor([0.0, 1.0, 2.0]),),
        "two texts of three rows": (torch.arange(24.0).view(2, 3, 4) % 7,),
        "a row near 1,000, a row near 0": (
            torch.tensor([[1000.0, 1001.0, 1002.0], [0.0, 1.0, 2.0]]),
        ),
        "a score of minus infinity": (torch.tensor([[NEG_INF, 0.0, 1.0]]),),
    },
    mistakes=[
        Mistake(
            partial(softmax_with, shift=lambda z: 0),
            "Right for small scores. But e to the 1,000th is too large for a float32: "
            "inf divided by inf is nan. What may you subtract from every score of a "
            "row without changing the result?",
            "openillumi.com: softmax and nan",
        ),
        Mistake(
            partial(softmax_with, shift=lambda z: z.max()),
            "You subtract one number from all rows. A row that lies far below it is "
            "left with nothing but zeros, and 0 / 0 is nan. Each row needs a number of "
            "its own.",
            "shusei-e.github.io: np.max(x) over all",
        ),
        Mistake(
            partial(softmax_with, axis=0),
            "The columns sum to 1. Each row is a distribution: along which axis must "
            "be summed?",
            "PyTorch's warning: implicit dim",
        ),
        Mistake(
            partial(softmax_with, shift=lambda z: z.amax(0, keepdim=True), axis=0),
            "The columns sum to 1. Each row is a distribution: along which axis must "
            "be summed, and the largest be looked for?",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda z: z / z.sum(-1, keepdim=True),
            "You divide the scores themselves by their sum. And if they are all 0, or "
            "one is negative? Section 1.3 makes powers of them first.",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda z: softmax_with(z, axis=tuple(range(z.ndim))),
            "All numbers together sum to 1. Each row is a distribution of its own.",
            "1-D softmax used on 2-D, delftstack",
        ),
        Mistake(
            lambda z: softmax_with(z.clamp(max=80)),
            "No overflow any more, but scores of 1,000 and 1,002 have become the same. "
            "Shift the scores; don't cut them.",
            "clipping, softmax questions",
        ),
        Mistake(
            partial(softmax_with, keep=False),
            "A sum or a maximum over the last axis takes that axis away. Section 1.3 "
            "had a word that keeps it, with length 1, so that each row meets its own "
            "total.",
            "section 1.3: keepdim",
        ),
        Mistake(
            lambda z: z - z.max(dim=-1, keepdim=True),
            "`max` with a `dim` returns two things, the largest values and their "
            "places. Which one do you need?",
            "a trial of this exercise",
        ),
        Mistake(
            lambda z: softmax_with(z, lambda z: z.max(), tuple(range(z.ndim))),
            "All numbers together sum to 1. Each row is a distribution of its own, and "
            "has a largest score of its own.",
            "a trial of this exercise",
        ),
        Mistake(
            partial(softmax_with, shift=lambda z: z.mean(-1, keepdim=True)),
            "Any number may be subtracted, if it is a number: what is the mean, or the "
            "smallest, of a row with a minus infinity in it?",
            "a trial of this exercise",
        ),
    ],
    notice="Only differences between the scores of a row count. So you could subtract "
    "any number, and the largest is the one that is always safe.",
)

# --- 1.4 -----------------------------------------------------------------------------


def refuse(table, lowest=0.0, near=1e-4, axis=1, nan_is_bad=True):
    """Assert that a table holds probabilities, more or less carefully."""
    off = (table.sum(dim=axis) - 1).abs()
    assert (off <= near).all() if nan_is_bad else not (off > near).any()
    assert not (table < lowest).any()


def refuse_total(table):
    """Assert that all rows together hold V, and nothing of each."""
    assert not (table < 0).any() and abs(table.sum() - len(table)) < 1e-3


def complain(table):
    """Raise another error than that of an assert."""
    if refuses(refuse, table) == "refused":
        raise ValueError


GOOD = torch.rand(71, 71, generator=torch.Generator().manual_seed(1)) ** 4
GOOD = GOOD / GOOD.sum(dim=1, keepdim=True)
SUMS = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.5, 0.25, 0.25]])
EXERCISE_4 = Exercise(
    "1.4",
    "break it: a test for tables",
    refuse,
    judge=refuses,
    cases={
        "a good table of 71 letters": (GOOD,),
        "a good table with zeros and a one": (SUMS,),
        "a table in which the columns sum to 1": (SUMS.T,),
        "a table with a negative number": (
            torch.tensor([[1.5, -0.5, 0.0], [0.0, 1.0, 0.0], [0.5, 0.25, 0.25]]),
        ),
        "a table with a row of 0 / 0": (torch.tensor([[0.5, 0.5], [np.nan, np.nan]]),),
        "a table rounded to two decimals": (torch.full((3, 3), 0.33),),
    },
    mistakes=[
        Mistake(
            partial(refuse, near=0.0),
            "You refuse a good table. Its 71 numbers were rounded when they were "
            "divided and summed: how exactly can they add up to 1?",
            "floats compared with ==",
        ),
        Mistake(
            partial(refuse, axis=0),
            "Along which axis do you sum? You refuse a good table, whose rows sum to "
            "1.",
            "makemore's lecture: columns",
        ),
        Mistake(
            partial(refuse, lowest=NEG_INF),
            "A row of 1.5 and −0.5 sums to 1, too. What else must hold for a "
            "probability?",
            "sign forgotten: our own first version",
        ),
        Mistake(
            partial(refuse, nan_is_bad=False),
            "Every comparison with nan is False, also 'is it too far from 1?'. Ask the "
            "other way round: is every row near enough?",
            "nan != nan, python questions",
        ),
        Mistake(
            partial(refuse, near=0.05),
            "A table whose rows sum to 0.99 gets through. How large is an error of "
            "rounding in float32, and how large is this one? And do you notice too "
            "little as well as too much?",
            "atol=1e-2, a university course's tests",
        ),
        Mistake(
            lambda table: None,
            "All four get through. Does an `assert` stand there? What a test returns, "
            "nobody looks at. And `assert (…, …)`, with two things in brackets, is "
            "always true.",
            "a trial of this exercise",
        ),
        Mistake(
            refuse_total,
            "All rows together may hold V although one has too much and another too "
            "little. Each row is a distribution of its own.",
            "a trial of this exercise",
        ),
        Mistake(
            complain,
            "You find all four. But you raise a ValueError: what is raised where an "
            "`assert` fails?",
            "a trial of this exercise",
        ),
        Mistake(
            partial(refuse, lowest=1e-30),
            "You refuse a good table. May a probability be 0, or 1?",
            "a trial of this exercise",
        ),
        Mistake(
            partial(refuse, lowest=2.0),
            "You refuse every table, the good ones, too. Print what your `assert` "
            "compares for a good one: what should a row add up to, and which dtype "
            "has the table?",
            "a learner's trial of ours",
        ),
    ],
    notice="A test has two sides: it lets the good through, with their rounding, and "
    "it stops the bad. `nan` slips through every test that asks for the wrong thing.",
)

# --- 1.5 -----------------------------------------------------------------------------


def losses_of(x, y, V, steps, lr, clear="", pace=1.0, read=torch.clone):
    """Return the losses of gradient descent by autograd.grad, with a known fault."""
    table = torch.zeros(V, V, requires_grad=True)
    total, losses = 0, []
    for _ in range(steps):
        loss = F.cross_entropy(read(table[x]), y)
        (slope,) = torch.autograd.grad(loss, table)
        total = slope + total * (clear == "never")
        total = total * (clear != "too early")
        table = (table - lr * pace * total).detach().requires_grad_()
        losses.append(loss.item())
    return torch.tensor(losses)


def with_adam(x, y, V, steps, lr):
    """Return the losses of another optimizer, with the same fault."""
    table = torch.zeros(V, V, requires_grad=True)
    optimizer, losses = torch.optim.Adam([table], lr=lr), []
    for _ in range(steps):
        losses.append(F.cross_entropy(table[x], y))
        losses[-1].backward()
        optimizer.step()
    return torch.stack(losses).detach()


TEXT = torch.tensor([5, 3, 2, 4, 0, 5, 3, 2, 0, 3, 2, 4, 0, 1, 5, 2])  # chapter 1's
EXERCISE_5 = Exercise(
    "1.5",
    "mend it: the loss that comes back up",
    losses_of,
    faulty=partial(losses_of, clear="never"),
    cases={
        "30 steps": (TEXT[:-1], TEXT[1:], 6, 30, 2.0),
        "3 steps": (TEXT[:-1], TEXT[1:], 6, 3, 0.5),
    },
    mistakes=[
        Mistake(
            partial(losses_of, clear="too early"),
            "Now the loss stays at log V for ever: nothing is learned. At the moment "
            "of `step`, what is in the gradients? Or does the table begin anew in each "
            "step?",
            "velog.io/@rhss10: zero_grad between backward and step",
        ),
        Mistake(
            partial(losses_of, clear="never", pace=0.1),
            "Smaller steps swing later, but they swing. Print the gradient of one "
            "weight in every step: does it belong to this step only?",
            "'lower the learning rate'",
        ),
        Mistake(
            with_adam,
            "Another optimizer was not asked for: the losses should be those of plain "
            "`SGD`. Its fault is still to be found: what does `backward` do with the "
            "old gradient?",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(losses_of, read=partial(torch.softmax, dim=-1)),
            "The gradients are right now. But `cross_entropy` takes logits and makes "
            "a softmax of its own: with yours there are two.",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda x, y, V, n, lr: len(x) * losses_of(x, y, V, n, lr, pace=len(x)),
            "The loss is now a sum over the text, no longer the mean. That was not the "
            "fault: look at the order of the calls.",
            "reduction='sum' tried against a loss that does not fall",
        ),
    ],
    notice="`backward` adds. That is useful, too: chapter 5 adds up the gradients of "
    "several small batches before it takes one step.",
)

# --- 1.6 -----------------------------------------------------------------------------

EXERCISE_6A = Exercise(
    "1.6a",
    "the size of the table",
    71**3,
    mistakes=[
        Mistake(
            71**2,
            "That is one number for each pair of letters: the table of section 1.3. "
            "Now a row belongs to a pair. How many rows, and how long is each?",
            "contexts and cells mixed up: section 1.6's first column",
        ),
        Mistake(
            2 * 71**2,
            "Two tables of pairs would not know which two letters stood together. "
            "Every pair of letters has a row of its own.",
            "2 V² for V³, n-gram questions",
        ),
        Mistake(
            71**4,
            "A row for every pair, and 71 numbers in each: a factor 71 too many. One "
            "letter is predicted, not a pair.",
            "a trial of this exercise",
        ),
        Mistake(
            71 ^ 3,
            "`^` is no power in Python: it compares bits. How is a power written, or "
            "a product?",
            "a learner's trial of ours",
        ),
        Mistake(
            3 * 71,
            "Three letters have not three rows between them: every pair has one of "
            "its own. How many pairs are there?",
            "a learner's trial of ours",
        ),
    ],
    notice="Three letters of context would take 71 times as much again: the wall of "
    "section 1.6.",
)


def count_triples(ids, V, start=0, step=1):
    """Return numpy's histogram of all triples of neighbours."""
    triples = np.lib.stride_tricks.sliding_window_view(ids.numpy(), 3)[start::step]
    table, _ = np.histogramdd(triples, bins=[np.arange(V + 1)] * 3)
    return torch.from_numpy(table).long()


def numbered(ids, V, factors=None, short=False):
    """Return the counts where the number of a triple was made in a wrong way."""
    factors = factors or (V**2, V, 1)
    number = (ids.unfold(0, 3, 1) * torch.tensor(factors)).sum(dim=1)
    if short:
        return torch.bincount(number).view(V, V, V)
    return torch.bincount(number, minlength=V**3)[: V**3].view(V, V, V)


EXERCISE_6B = Exercise(
    "1.6b",
    "count triples",
    count_triples,
    cases={
        "then the hen ate": (TEXT, 6),
        "a text that lacks the last letters": (torch.tensor([1, 0, 1, 1, 0, 1, 1]), 4),
    },
    mistakes=[
        Mistake(
            partial(numbered, factors=(1, 1, 1)),
            "Different triples get the same number. In 1.3 the pair (i, j) was number "
            "i · V + j. What comes before i · V if there is one letter more?",
            "section 1.3's trick, one axis further",
        ),
        Mistake(
            lambda ids, V: count_triples(ids, V).clamp(max=1),
            "No cell is larger than 1. `counts[i, j, k] += 1` with lists of ids reads, "
            "adds and writes once, also where a cell is named twice.",
            "torch index_put_ without accumulate",
        ),
        Mistake(
            partial(count_triples, start=1),
            "One triple is missing. A text of N letters has N − 2 of them: which "
            "slices of the text do you put side by side?",
            "off by one in ids[:-2], ids[1:-1], ids[2:]",
        ),
        Mistake(
            lambda ids, V: numbered(ids, V, (V, V, 1)),
            "Different triples get the same number. In 1.3 the pair (i, j) was number "
            "i · V + j. What comes before i · V if there is one letter more?",
            "a trial of this exercise",
        ),
        Mistake(
            partial(numbered, short=True),
            "`bincount` stops at the largest number that occurs, so its row is too "
            "short for the table. Which argument of it did section 1.3 use, and how "
            "long must the row be here?",
            "section 1.3: minlength",
        ),
        Mistake(
            lambda ids, V: count_triples(ids[:-1], V),
            "One triple is missing, the last. A text of N letters has N − 2 of them: "
            "where does your loop, or your slice, end?",
            "a trial of this exercise",
        ),
        Mistake(
            partial(count_triples, step=3),
            "You go on three letters at a time. Triples overlap: one begins at each "
            "letter.",
            "a trial of this exercise",
        ),
    ],
    notice="Nearly all cells are empty.",
)


class Reference:
    """Two letters of context that fall back on one, as a loop over a dictionary."""

    def __init__(
        self, ids, V, added, middle=1, falls_back=True, seen=slice(None), **also
    ):
        parts = [ids.unfold(0, 3, 1), *(ids[seen].unfold(0, n, 1) for n in (2, 1))]
        three, two, one = (Counter(map(tuple, part.tolist())) for part in parts)
        one[ids[seen][-1].item(),] -= 1  # nothing follows the end
        starts = Counter(window[:2] for window in three.elements())
        starts = two if also.get("all_pairs") else starts
        self.P = torch.zeros(V, V, V)
        for i, j, k in np.ndindex(V, V, V):
            last = (i, j)[middle]
            share = two[last, k] + added / also.get("spread", V)
            share = share / (one[last,] + added)
            share = share if falls_back else 1 / V
            count = three[i, j, k] + added * share
            whole = starts[(j, k) if also.get("lying") else (i, j)]
            self.P[i, j, k] = count / (whole + added)

    def probabilities(self):
        """Return the table (V, V, V)."""
        return self.P

    def perplexity(self, ids):
        """Return the exponential of torch's loss of the last letter of each triple."""
        i, j, k = ids.unfold(0, 3, 1).T
        return F.nll_loss(self.P[i, j].log(), k).exp()


class CrossEntropy(Reference):
    """Forgets the exponential."""

    def perplexity(self, ids):
        """Return the mean price."""
        return super().perplexity(ids).log()


def said(model, ids, V, added, new=None):
    """Judge a model by its table, or by what it says of a new text."""
    model = model(ids, V, added)
    return model.probabilities() if new is None else model.perplexity(new)


EXERCISE_6C = Exercise(
    "1.6c",
    "a model that falls back",
    Reference,
    judge=said,
    cases={
        "the table of then the hen ate, added 1": (TEXT, 6, 1.0),
        "its perplexity on ␣the hen": (TEXT, 6, 1.0, TEXT[4:12]),
        "added 3, a text never seen": (TEXT, 6, 3.0, torch.tensor([1, 1, 5, 0, 0])),
    },
    mistakes=[
        Mistake(
            partial(Reference, falls_back=False),
            "Where does a pair of letters that never occurred get its probabilities? "
            "Yours gives every letter the same; it should ask the table with one "
            "letter of context.",
            "add-alpha smoothing used where section 1.6 falls back",
        ),
        Mistake(
            partial(Reference, middle=0),
            "You fall back on the first of the two letters. Which of them stands next "
            "to the letter that is predicted?",
            "axis of the bigram mixed up with that of the trigram",
        ),
        Mistake(
            partial(Reference, seen=slice(1, None)),
            "The first pair of the text is missing. In the table of triples, a pair "
            "(j, k) is counted only where a letter stands before it.",
            "self-test: pairs as triples summed up",
        ),
        Mistake(
            partial(Reference, seen=slice(-1)),
            "The last pair of the text is missing. In the table of triples, a pair (i, "
            "j) is counted only where a letter follows it.",
            "a trial of this exercise",
        ),
        Mistake(
            partial(Reference, spread=1),
            "Look at a row of P(k | j): does it add up to 1? `added` observations in "
            "all are shared out among V letters.",
            "a trial of this exercise",
        ),
        Mistake(
            partial(Reference, lying=True),
            "Do your rows add up to 1? The totals of the pairs have lost an axis and "
            "lie down across the wrong ones. What keeps it?",
            "section 1.3: keepdim",
        ),
        Mistake(
            partial(Reference, all_pairs=True),
            "For c(i j ·) you count every pair of the text, also the last one, which "
            "no letter follows. It is a total of triples: of which ones?",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda ids, V, added: Reference(ids, V, 1.0),
            "With `added` = 1 all is right, with 3 it is not. Does it stand in all "
            "four places of the two formulas?",
            "a learner's trial of ours",
        ),
        Mistake(
            CrossEntropy,
            "The table is right. What you return for the text is the cross-entropy, in "
            "nats. What makes a perplexity of it?",
            "a trial of this exercise",
        ),
    ],
    notice="With `added` near 0 you get the counted table, with a large one the model "
    "with one letter of context. The best lies between.",
)

check = Checks(
    EXERCISE_1,
    EXERCISE_2,
    EXERCISE_3,
    EXERCISE_4,
    EXERCISE_5,
    EXERCISE_6A,
    EXERCISE_6B,
    EXERCISE_6C,
)
