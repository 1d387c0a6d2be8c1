"""What the exercises of chapter 6 are checked with. It gives them away: try first.

Where a mistake was seen: `section 6.3` is this course, where the wrong version stands
first or is warned of; `owner/name#1` is an issue or a pull request on GitHub.
"""

# mypy: disable-error-code="func-returns-value"

import math
import statistics
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from shared.gpt_model import GPTConfig, GPTModel
from shared.support.exercises import Checks, Exercise, Mistake, bits, numbers, refuses

# --- 6.1 the score of a word ---------------------------------------------------------


def word_score(spam, ham, n_spam, n_ham, n_known, more=1, of=None, swap=False):
    all_known = n_known if of is None else of
    shares = (spam + more) / (n_spam + all_known), (ham + more) / (n_ham + all_known)
    return math.log(shares[swap] / shares[not swap])


NO_ONES = (
    "A word that never stood in ham now decides alone, or breaks the logarithm. With "
    "which number does every count start?"
)
SCORE = Exercise(
    "6.1",
    "the score of a word",
    word_score,
    cases={
        "spam 3 of 200, ham 1 of 100, 50 known words": (3, 1, 200, 100, 50),
        "a word that was never in ham": (4, 0, 150, 250, 60),
        "a word that was never in spam": (0, 7, 150, 250, 60),
    },
    notice="One word more in ham costs more the rarer the word is: it is a ratio.",
    mistakes=[
        Mistake(
            partial(word_score, more=0, of=0),
            NO_ONES,
            "accord-net/framework#255",
        ),
        Mistake(
            lambda spam, ham, a, b, n: math.log(spam / a) - math.log(ham / b),
            NO_ONES,
            "accord-net/framework#255",
        ),
        Mistake(
            partial(word_score, more=0),
            "The sums have grown, as if every count began at 1. Do the counts above "
            "the line begin there?",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda spam, ham, a, b, n: word_score(spam, ham, b, a, n),
            "The two sums have changed places: which of them is the spam's?",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda s, h, a, b, n: math.log((s + 1 / (a + n)) / (h + 1 / (b + n))),
            "Division comes before addition: what is divided here, the count or only "
            "the 1?",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda *counts: word_score(*counts) / math.log(10),
            "A ratio of logarithms is off: which base has the *natural* logarithm?",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(word_score, of=0),
            "Each count got its extra 1. Now there are more words than before: how "
            "many more, in all of spam and in all of ham?",
            "cardmagic/classifier#80",
        ),
        Mistake(
            lambda spam, ham, *totals: math.log((spam + 1) / (ham + 1)),
            "You compare the counts. And if there is twice as much ham as spam to "
            "count in?",
            "a first attempt of ours",
        ),
        Mistake(
            partial(word_score, of=2),
            "A little was added below the line. But every known word got its 1: by "
            "how much has the sum of all counts grown?",
            "pbharrin/machinelearninginaction3x#20",
        ),
        Mistake(
            partial(word_score, swap=True),
            "The sign is wrong: a word of spam should score above zero.",
            "section 6.2",
        ),
        Mistake(
            lambda *counts: math.exp(word_score(*counts)),
            "That is the ratio. What makes a sum of products?",
            "dfdx/NaiveBayes.jl#6",
        ),
    ],
)

# --- 6.2 the last real token ---------------------------------------------------------


def last_real(states, mask, by=torch.Tensor.bool):
    return torch.stack([x[by(m)][-1] for x, m in zip(states, mask, strict=True)])


def at(places, states, mask):
    return states[torch.arange(len(states)), places(mask)]


LAST = Exercise(
    "6.2",
    "the last real token",
    last_real,
    cases={
        "padding on the right": (numbers(3, 4, 2), bits("1100 1111 1000").int()),
        "padding on the left": (numbers(2, 3, 2), bits("011 001").int()),
        "padding on both sides": (numbers(2, 4, 2), bits("0110 1110").int()),
    },
    differentiable=True,
    notice="Nothing here asks on which side the padding is: the last 1 is the last 1.",
    mistakes=[
        Mistake(
            lambda states, mask: states[:, -1],
            "You read the last column. In a short row on the left, what stands there?",
            "huggingface/transformers#7501",
        ),
        Mistake(
            partial(at, lambda mask: mask.sum(dim=1) - 1),
            "You count the real tokens. That is the place of the last one only if the "
            "first one stands at 0.",
            "huggingface/transformers#46782",
        ),
        Mistake(
            partial(at, lambda mask: (mask == 0).int().argmax(dim=1) - 1),
            "You look for the first padding token, and step back. And if the row "
            "begins with padding, and ends with it?",
            "huggingface/transformers#35909",
        ),
        Mistake(
            partial(at, lambda mask: mask.flip(1).argmax(dim=1)),
            "You have counted from the right end. Which place is that, counted from "
            "the left?",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(at, lambda mask: mask.sum(dim=1)),
            "One place too far. Positions are counted from 0. (And only rows without "
            "padding on the left can be read in this way.)",
            "section 6.3",
        ),
        Mistake(
            partial(at, lambda mask: mask.argmax(dim=1)),
            "`argmax` finds the first of several equal numbers, so this is the first "
            "real token. Which numbers are largest at the *last* 1?",
            "a first attempt of ours",
        ),
        Mistake(
            partial(last_real, by=torch.Tensor.long),
            "The mask holds whole numbers. As an index they are places, 0 and 1. Only "
            "truth values choose.",
            "a first attempt of ours",
        ),
        Mistake(
            lambda x, m: (x * m[..., None]).sum(dim=1) / m.sum(dim=1, keepdim=True),
            "That is the mean over all real tokens. A single one is wanted.",
            "section 6.8",
        ),
    ],
)

# --- 6.3 how far apart ---------------------------------------------------------------

APART = Exercise(
    "6.3",
    "how far apart",
    math.log(9),
    rtol=0.01,
    notice="2.2 logits are 9 to 1; another 2.4 make it 99 to 1, and so on.",
    mistakes=[
        Mistake(
            9.0,
            "Nine to one, yes: that is the ratio of the two probabilities. Which "
            "difference of logits makes a ratio of nine?",
            "section 6.4",
        ),
        Mistake(
            -math.log(9),
            "That is the difference for ham. Which of the two logits is larger?",
            "section 6.4",
        ),
        Mistake(
            math.log10(9),
            "Nearly: which base has the logarithm that undoes e to the power of x?",
            "section 6.4",
        ),
        Mistake(
            -math.log(0.9),
            "That is the loss of such a message. The logits are one step earlier.",
            "section 6.4",
        ),
        Mistake(
            1 / (1 + math.exp(-0.9)),
            "That makes a probability of a logit. You need the way back.",
            "a learner's trial of ours",
        ),
        Mistake(
            -math.log(0.1),
            "That is one logarithm of a probability. Where is the other class?",
            "a learner's trial of ours",
        ),
        Mistake(
            math.log(0.9),
            "That is one logarithm of a probability. Where is the other class?",
            "a learner's trial of ours",
        ),
    ],
)

# --- 6.4 a head for three classes ----------------------------------------------------


at_last = partial(at, lambda last: last)


class Head(nn.Module):
    """A model with a new head; the flags say what goes wrong."""

    def __init__(self, model, n, freeze="first", read=at_last, size=None, norm=False):
        super().__init__()
        if freeze == "first":
            model.requires_grad_(False)
        self.model, self.read = model, read
        self.head = nn.Linear(model.config.emb_dim, size or n)
        self.norm = model.final_norm if norm else nn.Identity()
        if freeze == "last":
            self.requires_grad_(False)

    def forward(self, token_ids, lengths):
        states = self.norm(self.model.hidden_states(token_ids))
        return self.read(self.head(states), lengths - 1)


def new_head(cls, token_ids, lengths, n_classes):
    """Return the shapes of what is trained, and logits with fixed weights."""
    config = GPTConfig(vocab_size=9, context_length=6, emb_dim=4, n_heads=2, n_layers=1)
    classifier = cls(GPTModel(config).eval(), n_classes)
    trained = [p for p in classifier.parameters() if p.requires_grad]
    for p in trained:
        p.data = torch.linspace(-1, 1, p.numel()).view(p.shape)
    logits = classifier(torch.tensor(token_ids), torch.tensor(lengths))
    found = {"shapes trained": sorted(list(p.shape) for p in trained)}
    return found | {"logits": logits, "has a gradient": logits.requires_grad}


HEAD = Exercise(
    "6.4",
    "a head for three classes",
    Head,
    judge=new_head,
    cases={
        "two texts, three classes": ([[1, 2, 3, 4], [5, 6, 0, 0]], [4, 2], 3),
        "one text, five classes": ([[7, 8]], [2], 5),
    },
    notice="Ham, spam or a bill: no word of the training would have to be changed, for "
    "cross-entropy counts to three as well.",
    mistakes=[
        Mistake(
            partial(Head, freeze="last"),
            "Nothing can be trained, not even the head. When do you freeze: before the "
            "head is there, or after?",
            "cfzd/Ultra-Fast-Lane-Detection#282",
        ),
        Mistake(
            partial(Head, freeze="never"),
            "All of the model would be trained. Only the head should be.",
            "huggingface/transformers#228",
        ),
        Mistake(
            partial(Head, read=lambda logits, last: logits[:, -1]),
            "You read the last column. Where does a short text end?",
            "section 6.3",
        ),
        Mistake(
            partial(Head, read=lambda logits, last: logits[:, 0]),
            "You read the first token. Which token has read the whole message?",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(Head, read=lambda logits, last: logits.mean(dim=1)),
            "That is a mean over all columns, padding as well. Which token has read "
            "the whole message?",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(Head, norm=True),
            "The final norm is applied twice: `hidden_states` comes after it.",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(Head, read=lambda logits, last: logits),
            "There are logits for every token. The text is to be judged once.",
            "section 6.4",
        ),
        Mistake(
            partial(Head, size=2),
            "Always two classes. How does the head know how many there are?",
            "section 6.4",
        ),
        Mistake(
            partial(Head, read=lambda *parts: at_last(*parts).softmax(dim=-1)),
            "Those are probabilities already. What does `F.cross_entropy` want, and "
            "what does it do to it first?",
            "a first attempt of ours",
        ),
        Mistake(
            partial(Head, read=lambda *parts: at_last(*parts).detach()),
            "The logits are right, but no gradient comes back to the head: it would "
            "never learn. What lies inside of `torch.no_grad()`?",
            "a first attempt of ours",
        ),
    ],
)

# --- 6.5 more ham than spam ----------------------------------------------------------


def weighted(logits, labels, weights, by=lambda w, n: w.sum(), pick=None):
    losses = F.cross_entropy(logits, labels, reduction="none")
    w = weights[labels if pick is None else pick(logits)]
    return (w * losses).sum() / by(w, len(labels))


def with_weights(answer, logits, labels, weights):
    return answer(logits, torch.tensor(labels), torch.tensor(weights))


WEIGHTED = Exercise(
    "6.5",
    "more ham than spam",
    lambda logits, labels, weights: F.cross_entropy(logits, labels, weights),
    judge=with_weights,
    cases={
        "three ham, one spam": (numbers(4, 2), [0, 0, 1, 0], [1.0, 3.0]),
        "three classes": (numbers(6, 3), [2, 0, 1, 0, 0, 2], [0.5, 2.0, 1.0]),
        "spam only": (numbers(3, 2, seed=3), [1, 1, 1], [1.0, 3.0]),
    },
    differentiable=True,
    notice="In a batch of one class the weight cancels. With unequal batches a summed "
    "loss, divided once at the end, is fairer.",
    mistakes=[
        Mistake(
            partial(weighted, by=lambda w, n: n),
            "The weighted losses are right. You divide by the number of texts. What "
            "would a loss of 1 for every text come to, and should it?",
            "pytorch/pytorch#40560",
        ),
        Mistake(
            partial(weighted, by=lambda w, n: 1),
            "A sum. What makes a weighted mean of it?",
            "imoneoi/openchat#99",
        ),
        Mistake(
            lambda x, y, w: weighted(x, y, w, by=lambda *_: w.sum()),
            "You divide by the sum of the classes' weights. But how often does each "
            "class occur among these texts?",
            "a first attempt of ours",
        ),
        Mistake(
            lambda logits, labels, weights: F.cross_entropy(logits * weights, labels),
            "You weigh the logits. That makes another model; weigh its losses.",
            "a first attempt of ours",
        ),
        Mistake(
            partial(weighted, pick=lambda logits: logits.argmax(dim=-1)),
            "You weigh by the class that the model finds likeliest. Whose class "
            "decides how much a text counts?",
            "section 6.4",
        ),
        Mistake(
            lambda logits, labels, weights: F.cross_entropy(logits, labels),
            "That is the plain mean: the weights are not used.",
            "section 6.6",
        ),
        Mistake(
            lambda x, y, w: weighted(x.softmax(dim=-1), y, w),
            "Those were probabilities already. What does `F.cross_entropy` do to what "
            "it gets?",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda x, y, w: F.nll_loss(x.log_softmax(dim=0), y, w),
            "Your softmax runs down the batch. Among what do a text's probabilities "
            "add up to 1?",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda x, y, w: F.cross_entropy(x, y) * w[y].mean(),
            "A mean loss times a mean weight. Each text's loss should meet its own "
            "weight, before anything is added up.",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda x, y, w: weighted(x, y, w, by=lambda *_: len(w)),
            "You divide by the number of classes. What would a loss of 1 for every "
            "text come to?",
            "a learner's trial of ours",
        ),
    ],
)

# --- 6.6 a test for neighbours -------------------------------------------------------

TABLE = numbers(20, 2, seed=4)


def alone(row):
    return TABLE[row].cumsum(dim=0)[-1]


def last_column(rows):
    return TABLE[pad_sequence(rows, batch_first=True)].cumsum(dim=1)[:, -1]


def mean_of_all(rows):
    return TABLE[pad_sequence(rows, batch_first=True)].mean(dim=1)


def by_length(rows):
    return good_filter(sorted(rows, key=len))


def good_filter(rows):
    """Classify each row by itself; the rounding depends on the batch, as on a CPU."""
    if torch.is_tensor(rows):
        raise TypeError("classify takes a list of messages, also of a single one")
    return torch.stack([alone(row) for row in rows]) * (1 + 1e-7 * len(rows))


def over_the_batch(rows):
    return good_filter(rows).softmax(dim=0)


def beside_the_mean(rows):
    lengths = torch.tensor([float(len(row)) for row in rows])
    return good_filter(rows) + (lengths - lengths.mean())[:, None]


def last_and_first(rows):
    logits = good_filter(rows)
    return torch.cat([logits[:-1], logits[-1:] + logits[:1] * (len(rows) > 1)])


def refuse_neighbours(classify, rows, close=torch.allclose, which=slice(None), by=all):
    together = classify(rows)
    alone = [classify([row])[0] for row in rows]
    assert by(close(*pair) for pair in [*zip(together, alone, strict=True)][which])


def copies_only(classify, messages):
    for row in messages:
        assert torch.allclose(classify([row, row])[0], classify([row])[0], atol=1e-4)


MESSAGES = ([torch.tensor(row) for row in ([3, 4], [5, 6, 7, 8, 9], [10, 11, 12])],)
NEIGHBOURS = Exercise(
    "6.6",
    "a test that catches bad neighbours",
    refuse_neighbours,
    judge=refuses,
    cases={
        "a good filter, rounded as computers do": (good_filter, *MESSAGES),
        "one that reads the last column": (last_column, *MESSAGES),
        "one that takes a mean over the padding, too": (mean_of_all, *MESSAGES),
        "one that answers in the order of length": (by_length, *MESSAGES),
        "one whose softmax runs over the batch": (over_the_batch, *MESSAGES),
        "one that sets a length against the batch's mean": (beside_the_mean, *MESSAGES),
        "one whose last message is mixed with the first": (last_and_first, *MESSAGES),
    },
    notice="Your test knows nothing of models. It would catch the same mistakes in a "
    "filter of 135 million weights.",
    mistakes=[
        Mistake(
            lambda classify, messages: classify(messages),
            "Your test lets every filter pass. What should be the same for a message "
            "alone and in company, and where do you `assert` it?",
            "castorini/castor#176: nobody had compared",
        ),
        Mistake(
            partial(refuse_neighbours, close=torch.equal),
            "You refuse the good filter, too: the last digits of a float may depend on "
            "the batch. How near is near enough?",
            "aalok-sathe/surprisal#16",
        ),
        Mistake(
            partial(refuse_neighbours, which=slice(1)),
            "You compare only the first message. What of a filter that mixes up the "
            "others?",
            "mead-ml/mead-baseline#677",
        ),
        Mistake(
            partial(refuse_neighbours, close=lambda a, b: a.argmax() == b.argmax()),
            "You compare the classes only. A neighbour can change the logits a good "
            "deal before another class wins.",
            "a first attempt of ours",
        ),
        Mistake(
            partial(refuse_neighbours, which=slice(-1)),
            "One message is never compared: the last.",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(refuse_neighbours, by=any),
            "Your test lets a filter pass as soon as one message agrees. How many "
            "should?",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(refuse_neighbours, close=partial(torch.allclose, atol=1)),
            "With so much room real differences pass, too. How large is one that only "
            "rounding makes?",
            "a learner's trial of ours",
        ),
        Mistake(
            copies_only,
            "You compare a message with copies of itself: no neighbour is of another "
            "length. Compare the message *alone* with the same one among the others.",
            "FutureComputing4AI/MalConv2#6",
        ),
    ],
)

# --- 6.7 an interval -----------------------------------------------------------------


def interval(ours, theirs, deviation=statistics.stdev, root=True, unit=100, z=1.96):
    points = [unit * (a - b) for a, b in zip(ours.int(), theirs.int(), strict=True)]
    points = [float(p) for p in points]
    mean = statistics.fmean(points)
    half = z * deviation(points) / (len(points) ** 0.5 if root else 1)
    return mean, mean - half, mean + half


def unpaired(ours, theirs):
    means = [100 * x.float().mean().item() for x in (ours, theirs)]
    spread = [(100 * x.float()).var() for x in (ours, theirs)]
    mean, half = means[0] - means[1], 1.96 * (sum(spread).item() / len(ours)) ** 0.5
    return mean, mean - half, mean + half


PAIRED = Exercise(
    "6.7",
    "an interval for a difference",
    interval,
    cases={
        "eight messages": tuple(bits("11110111 11010101")),
        "theirs is better": tuple(bits("1011010111011 1111011111101")),
    },
    notice="Where both are right, or both wrong, nothing is added: the pairs make the "
    "interval narrow.",
    mistakes=[
        Mistake(
            unpaired,
            "You add up the variances of the two, as if each had been tested on "
            "messages of its own. What has every single message to say?",
            "EleutherAI/lm-evaluation-harness#3831",
        ),
        Mistake(
            partial(interval, unit=1),
            "Right as shares of 1. The answer is to be in points, up to 100.",
            "a first attempt of ours",
        ),
        Mistake(
            partial(interval, z=1),
            "That is one standard error on either side. How many make 95 %?",
            "a first attempt of ours",
        ),
        Mistake(
            partial(interval, root=False),
            "So much do single messages scatter. The mean of n of them scatters less.",
            "section 6.7",
        ),
        Mistake(
            partial(interval, deviation=statistics.pstdev),
            "Nearly. The deviation of a sample is divided by n − 1, since the mean was "
            "taken from the same sample.",
            "section 6.7",
        ),
        Mistake(
            lambda ours, theirs: interval(theirs, ours),
            "The sign is the other way round: above zero, ours is ahead.",
            "section 6.7",
        ),
    ],
)

# --- 6.8 mend the order --------------------------------------------------------------


def states_by_length(rows, lower, back="right", cut=True, key=len):
    order = sorted(range(len(rows)), key=lambda i: key(rows[i]))
    states = []
    for start in range(0, len(order), 2):
        some = [rows[i] for i in order[start : start + 2]]
        for row, x in zip(some, lower(pad_sequence(some, True)), strict=True):
            states.append(x[: len(row)] if cut else x)
    places = {"right": sorted(range(len(order)), key=order.__getitem__), "twice": order}
    return states if back == "no" else [states[i] for i in places[back]]


def table_of_states(answer, *rows):
    """Return the states, and how many rows and columns were computed at a time."""
    sizes = []
    states = answer([*rows], lambda t: sizes.append([*t.shape]) or TABLE[t].cumsum(1))
    return {"states": states, "computed": sorted(sizes)}


def looked_up(rows, lower):
    states = states_by_length(rows, lower)
    return [{len(x): x for x in states}[len(row)] for row in rows]


PADDED = "The order is right. But a row has its padding with it now."
ROWS = [torch.arange(n) + n for n in (4, 1, 3, 2, 5)]
ORDER = Exercise(
    "6.8",
    "mend the order",
    states_by_length,
    judge=table_of_states,
    faulty=partial(states_by_length, back="no"),
    cases={
        "two rows": (ROWS[0], ROWS[1]),
        "three rows": (ROWS[2], ROWS[4], ROWS[1]),
        "five rows": tuple(ROWS),
        "four rows, two of one length": (ROWS[0], ROWS[2], ROWS[2] + 9, ROWS[1]),
    },
    notice="With sorted rows all was well. A test with rows that happen to be sorted "
    "would never have found it.",
    mistakes=[
        Mistake(
            partial(states_by_length, back="twice"),
            "Nearly. You have the list that says which row came first; you need the "
            "opposite, where row 0 has gone. With two rows it is the same.",
            "mead-ml/mead-baseline#677",
        ),
        Mistake(
            looked_up,
            "Two rows of one length get the same states. By what else can a row be "
            "told from the others?",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(states_by_length, key=lambda row: 0),
            "Every row has its own states now. But the rows are no longer sorted, so "
            "there is more padding again. Keep the order of length, and turn it back.",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda rows, lower: [lower(row[None])[0] for row in rows],
            "Every row has its own states now. But one row at a time is slow: keep "
            "the pairs.",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(states_by_length, cut=False),
            PADDED,
            "section 6.5",
        ),
        Mistake(
            lambda rows, f: list(f(pad_sequence(rows, True))),
            PADDED,
            "section 6.5",
        ),
    ],
)

# --- 6.9 what an adapter holds -------------------------------------------------------


def adapter(a=(4, 576), b=(192, 4), n=30 * 4 * (2 * 576 + 576 + 192)):
    return {"A": a, "B": b, "numbers": n}


SIZES = Exercise(
    "6.9",
    "what an adapter holds",
    adapter(),
    notice="Less than a megabyte as floats, for a model of half a gigabyte.",
    mistakes=[
        Mistake(
            adapter(a=(576, 4), b=(4, 192)),
            "A and B lie the other way: they multiply a column x from the left, B (A "
            "x), as `nn.Linear` keeps its matrix.",
            "section 6.12",
        ),
        Mistake(
            adapter(a=(4, 192), b=(576, 4)),
            "A and B: which of the two meets x first, and how long is x?",
            "section 6.12",
        ),
        Mistake(
            adapter(n=30 * 4 * 4 * 576),
            "`numbers`: the values have 192 rows only, since three groups share them.",
            "section 6.12",
        ),
        Mistake(
            adapter(n=30 * 4 * (576 + 192)),
            "`numbers`: those are in `W_value` only, or one adapter in each block. How "
            "many are there in a block?",
            "a first attempt of ours",
        ),
        Mistake(
            adapter(n=4 * (2 * 576 + 576 + 192)),
            "`numbers`: that is one block.",
            "section 6.12",
        ),
        Mistake(
            adapter(n=30 * (576 * 576 + 576 * 192)),
            "`numbers`: that is how many the two matrices have. And their adapters?",
            "section 6.12",
        ),
        Mistake(
            adapter(n=30 * 4 * (6 * 576 + 2 * 192)),
            "`numbers`: so many they are in the chapter. Here only two of the four "
            "matrices have an adapter.",
            "a learner's trial of ours",
        ),
    ],
)

# --- 6.10 a project: LoRA from nothing -----------------------------------------------


class Adapted(nn.Module):
    """A linear layer with an adapter; the flags say what goes wrong."""

    def __init__(self, old, rank, alpha, a=1, b=0, frozen=True, scale=None, turn=False):
        super().__init__()
        self.turn = (lambda matrix: matrix.mT) if turn else (lambda matrix: matrix)
        self.linear = old.requires_grad_(not frozen)
        self.scale = alpha / rank if scale is None else scale(alpha, rank)
        n_out, n_in = old.weight.shape
        self.A = nn.Parameter(self.turn(torch.randn(rank, n_in) * a))
        self.B = nn.Parameter(self.turn(torch.randn(n_out, rank) * b))

    def forward(self, x):
        B, A = self.turn(self.B), self.turn(self.A)
        weight = torch.addmm(self.linear.weight, B, A, alpha=self.scale)
        return F.linear(x, weight, self.linear.bias)


def adapted(cls, linear, rank, alpha, x):
    """Return what a fresh adapter is and does, and what a trained one does."""
    layer = cls(linear, rank, alpha)
    if isinstance(layer.A, nn.Module):
        return "a layer"
    trained = sorted(n for n, p in layer.named_parameters() if p.requires_grad)
    zeros = [bool((layer.A == 0).any()), bool((layer.B == 0).all())]
    found = {
        "trained": trained,
        "shapes of A and B": [[*layer.A.shape], [*layer.B.shape]],
        "at first": layer(x),
        "a zero in A, all zero in B": zeros,
    }
    layer.A.data = torch.linspace(-1, 1, layer.A.numel()).view(layer.A.shape)
    layer.B.data = torch.linspace(-1, 2, layer.B.numel()).view(layer.B.shape)
    return found | {"after some training": layer(x)}


def layer_of(n_in, n_out):
    linear = nn.Linear(n_in, n_out, bias=n_in < n_out)
    for n, p in enumerate(linear.parameters()):
        p.data = numbers(*p.shape, seed=n)
    return linear


LORA = Exercise(
    "6.10a",
    "an adapter",
    Adapted,
    judge=adapted,
    cases={
        "three in, five out, rank 2": (layer_of(3, 5), 2, 6.0, numbers(2, 3)),
        "four in, four out, rank 1": (layer_of(4, 4), 1, 2.0, numbers(1, 3, 4)),
    },
    notice="At first it does what the plain layer does, to the last bit, and still it "
    "can begin to learn: B has a slope.",
    mistakes=[
        Mistake(
            partial(Adapted, b=True),
            "A fresh adapter must change nothing. Which of the two starts at zero?",
            "hao-ai-lab/FastVideo#781",
        ),
        Mistake(
            partial(Adapted, a=False),
            "Both start at zero. Then which of the two has a gradient?",
            "Guitaricet/relora#18",
        ),
        Mistake(
            partial(Adapted, a=False, b=True),
            "It would learn, too. But here, as in the chapter, B is the one that "
            "starts at zero.",
            "microsoft/LoRA#98",
        ),
        Mistake(
            partial(Adapted, scale=lambda alpha, rank: 1),
            "The adapter works, but not at its strength. What stands before B A x?",
            "hao-ai-lab/FastVideo#870",
        ),
        Mistake(
            partial(Adapted, scale=lambda alpha, rank: alpha),
            "Too strong: by what is α divided?",
            "a first attempt of ours",
        ),
        Mistake(
            partial(Adapted, scale=lambda alpha, rank: alpha * rank),
            "Too strong: what does the formula do with α and the rank?",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(Adapted, turn=True),
            "It works, but both matrices lie on their side: A is (rank, in), B is "
            "(out, rank).",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda linear, *rest: nn.ModuleDict({"A": linear}),
            "`A` and `B` should be matrices, each an `nn.Parameter`. Yours are layers.",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda old, *to: Adapted(old.register_parameter("bias", None) or old, *to),
            "The bias of the old layer is lost. Who could take care of weight and bias "
            "together?",
            "a first attempt of ours",
        ),
        Mistake(
            lambda *arguments: Adapted(*arguments).requires_grad_(False),
            "An optimizer finds nothing to train. Is each of A and B a parameter of "
            "the module, and did you freeze before they were there, or after?",
            "a first attempt of ours",
        ),
        Mistake(
            partial(Adapted, frozen=False),
            "The layer itself would be trained as well: then nothing is saved.",
            "section 6.12",
        ),
    ],
)


def merge(weight, A, B, alpha, scale=None, turned=False):
    scale = alpha / len(A) if scale is None else scale(alpha, A)
    return weight + scale * ((B @ A).mT if turned else B @ A)


def matrices(n_out, n_in, rank):
    return numbers(n_out, n_in), numbers(rank, n_in, seed=2), numbers(n_out, rank)


MERGE = Exercise(
    "6.10b",
    "merge it",
    lambda weight, A, B, alpha: torch.addmm(weight, B, A, alpha=alpha / A.shape[0]),
    cases={
        "five out, three in, rank 2": (*matrices(5, 3, 2), 6.0),
        "a square matrix, rank 1": (*matrices(3, 3, 1), 2.0),
    },
    notice="One matrix again. Whoever gets it cannot tell that there was an adapter.",
    mistakes=[
        Mistake(
            partial(merge, scale=lambda alpha, A: 1),
            "The factor is missing: the adapter was stronger, or weaker, than that.",
            "cloneofsimo/lora#187",
        ),
        Mistake(
            partial(merge, scale=lambda alpha, A: alpha),
            "With rank 1 this is right. With rank 2 the adapter is twice as strong.",
            "a first attempt of ours",
        ),
        Mistake(
            partial(merge, scale=lambda alpha, A: alpha / A.shape[1]),
            "α is divided by a size, but not by the rank. Which side of A is the rank?",
            "section 6.12",
        ),
        Mistake(
            partial(merge, turned=True),
            "What you add lies on its side: rows and columns are exchanged.",
            "section 6.12",
        ),
        Mistake(
            lambda weight, A, B, alpha: weight + alpha / len(A) * A @ B,
            "A and B have changed places. Which of the two meets x first, and on "
            "which side of x does it stand?",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda weight, *rest: merge(0 * weight, *rest),
            "That is the change. What is it a change of?",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda W, A, B, a: merge(W, A, B, a, scale=lambda *_: a / len(B)),
            "α is divided by the number of outputs. Which of the two sizes of B is "
            "the rank?",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda weight, A, B, alpha: alpha / len(A) * (weight + B @ A),
            "The old weight has been scaled, too. What does the factor belong to?",
            "a learner's trial of ours",
        ),
    ],
)


def best_adapter(change, rank, which=slice(None), power=1):
    U, S, Vh = torch.linalg.svd(change, full_matrices=False)
    U, S, Vh = U[:, which][:, :rank], S[which][:rank], Vh[which][:rank]
    return Vh, U * S**power


def columns_of_vh(change, rank):
    Vh = torch.linalg.svd(change, full_matrices=False)[2]
    return Vh[:, :rank].mT, best_adapter(change, rank)[1]


def near(answer, change, rank):
    """Return the shapes of an adapter, and what it adds."""
    A, B = answer(change, rank)
    return {"A": A.shape, "B": B.shape, "B A": B @ A}


BEST = Exercise(
    "6.10c",
    "the best adapter of all",
    best_adapter,
    judge=near,
    cases={
        "four by three, rank 1": (numbers(4, 3), 1),
        "five by five, rank 2": (numbers(5, 5, seed=2), 2),
        "three by four, rank 3": (numbers(3, 4, seed=3), 3),
    },
    notice="No training can come nearer with this rank. Programs that make an adapter "
    "out of two finished models do just this.",
    mistakes=[
        Mistake(
            partial(best_adapter, which=torch.tensor([-1, -2, -3])),
            "You keep the weakest directions. How does `svd` sort?",
            "section 6.13",
        ),
        Mistake(
            lambda change, rank: (change[:rank], torch.eye(len(change))[:, :rank]),
            "You keep the first rows of the change. What is left is often much more.",
            "section 6.13",
        ),
        Mistake(
            partial(best_adapter, power=0),
            "The directions are right, their strengths are lost. Where is S?",
            "a first attempt of ours",
        ),
        Mistake(
            partial(best_adapter, power=2),
            "The strengths count twice: once in A, and once in B?",
            "a first attempt of ours",
        ),
        Mistake(
            lambda change, rank: best_adapter(change, len(change)),
            "All directions are kept. How many rows may A have?",
            "a first attempt of ours",
        ),
        Mistake(
            lambda change, rank: best_adapter(change, rank)[::-1],
            "A and B have changed places. Which of the two meets x first?",
            "a first attempt of ours",
        ),
        Mistake(
            columns_of_vh,
            "The third part of `svd` is ready for the product (its usual name is Vh). "
            "Do its directions lie in rows or in columns?",
            "a first attempt of ours",
        ),
    ],
)

check = Checks(
    SCORE, LAST, APART, HEAD, WEIGHTED, NEIGHBOURS, PAIRED, ORDER, SIZES,
    LORA, MERGE, BEST,
)  # fmt: skip
