"""What the exercises of chapter 3 are checked with. It gives them away: try first.

Where a mistake was seen: `section 3.5` is this course, where the wrong version stands
first; `owner/name#1` is an issue or a pull request on GitHub.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F

from shared.support.exercises import Checks, Exercise, Mistake, numbers, refuses

# --- 3.1 softmax ---------------------------------------------------------------------


def shares(scores, largest=torch.zeros_like, dim=-1, keepdim=True):
    powers = (scores - largest(scores)).exp()
    return powers / powers.sum(dim, keepdim=keepdim)


def largest_of(x, dim=-1):
    return x.amax(dim, keepdim=True)


FAR_APART = torch.tensor([[1000.0, 1001.0], [-1000.0, -1002.0]])
SOFTMAX = Exercise(
    "3.1",
    "softmax that cannot overflow",
    partial(torch.softmax, dim=-1),
    cases={
        "three scores": (torch.tensor([0.4, 3.6, -1.2]),),
        "two rows of small scores": (numbers(2, 3),),
        "two rows that lie far apart": (FAR_APART,),
    },
    differentiable=True,
    notice="Subtract what you like from a row: on paper the weights stay the same.",
    mistakes=[
        Mistake(
            shares,
            "Small scores work. How large is e to the power of 1000, as a float?",
            "section 3.2",
        ),
        Mistake(
            partial(shares, largest=torch.max),
            "You subtract the largest score of the whole table. What is then left of a "
            "row whose scores are all much smaller?",
            "openillumi.com/en/en-softmax-numerical-stability-python",
        ),
        Mistake(
            partial(shares, largest=partial(largest_of, dim=0), dim=0),
            "In a table, your columns add up to 1. Along which axis do the scores of "
            "one query lie?",
            "MicrosoftDocs/pytorchfundamentals#4",
        ),
        Mistake(
            lambda x: x / x.sum(-1, keepdim=True),
            "You divide the scores themselves by their sum. And if one is negative?",
            "section 3.2",
        ),
        Mistake(
            partial(shares, largest=largest_of, keepdim=False),
            "A sum over the last axis takes that axis away, and then the sums lie down "
            "as a row. What keeps the axis in place?",
            "section 1.3: keepdim",
        ),
        Mistake(
            partial(shares, largest=lambda x: x.amax(-1), keepdim=False),
            "A maximum or a sum over the last axis takes that axis away, and then the "
            "numbers lie down as a row. What keeps the axis in place?",
            "section 1.3: keepdim",
        ),
        Mistake(
            lambda x: shares(x, torch.max, dim=tuple(range(x.ndim))),
            "All numbers together add up to 1. Each row shares out its own weight.",
            "a trial of this exercise",
        ),
        Mistake(
            lambda x: shares(x, largest_of, dim=tuple(range(x.ndim))),
            "All numbers together add up to 1. Each row shares out its own weight.",
            "a trial of this exercise",
        ),
        Mistake(
            lambda x: x - x.max(dim=-1, keepdim=True),
            "`max` with a `dim` returns two things, the largest values and their "
            "places. Which one do you need?",
            "a trial of this exercise",
        ),
    ],
)

# --- 3.2 shapes ----------------------------------------------------------------------


def shapes(queries, scores, out, contexts=None):
    found = contexts or queries
    return {"queries": queries, "scores": scores, "contexts": found, "out": out}


HEADS, SCORES, OUT = (2, 3, 5, 4), (2, 3, 5, 5), (2, 5, 12)
SHAPES = Exercise(
    "3.2",
    "four shapes",
    shapes(HEADS, SCORES, OUT),
    notice="K = 4 is everywhere but in the scores: there, tokens meet tokens.",
    mistakes=[
        Mistake(
            shapes((2, 5, 3, 4), SCORES, OUT),
            "`queries` and `contexts` are cut into heads, yes. But each head needs a "
            "table of tokens of its own: which two axes are still to be swapped?",
            "harvardnlp/annotated-transformer#118",
        ),
        Mistake(
            shapes((2, 3, 5, 12), SCORES, OUT),
            "`queries`: twelve numbers for each of three heads? They share the twelve.",
            "jranaraki/vllm-fit#2",
        ),
        Mistake(
            shapes((2, 3, 5, 12), SCORES, (2, 5, 36)),
            "`queries`: twelve numbers for each of three heads? They share the twelve.",
            "jranaraki/vllm-fit#2",
        ),
        Mistake(
            shapes((2, 5, 3, 4), SCORES, OUT, HEADS),
            "`queries` is cut into heads, yes. But each head needs a table of tokens "
            "of its own: which two axes of the queries are still to be swapped?",
            "a trial of this exercise",
        ),
        Mistake(
            shapes(HEADS[1:], SCORES[1:], OUT[1:]),
            "Right for one text. There are two of them in the batch.",
            "a trial of this exercise",
        ),
        Mistake(
            shapes(HEADS, HEADS, OUT),
            "A score belongs to a query and a key. How many such pairs has a head?",
            "ai.stackexchange.com/questions/40400",
        ),
        Mistake(
            shapes(HEADS, (2, 5, 5), OUT),
            "Your scores are those of a single head: how many tables of scores has a "
            "text?",
            "a trial of this exercise",
        ),
        Mistake(
            shapes(HEADS, (2, 3, 4, 4), OUT),
            "A score belongs to two tokens, and the K numbers of a query are summed up "
            "in it. How many tokens are there?",
            "a trial of this exercise",
        ),
        Mistake(
            shapes(HEADS, SCORES, OUT, OUT),
            "Your contexts are side by side already; the ones asked for are still cut "
            "into heads.",
            "a trial of this exercise",
        ),
        Mistake(
            shapes(HEADS, SCORES, HEADS),
            "`out`: what happens to the heads before the last matrix?",
            "ajhalthor/Transformer-Neural-Network#8",
        ),
        Mistake(
            shapes(HEADS, SCORES, (2, 5, 4)),
            "`out`: that is what one head brings. What happens to the other two?",
            "a trial of this exercise",
        ),
    ],
)

# --- 3.3 causal weights --------------------------------------------------------------


def causal_weights(queries, keys):
    """PyTorch's own attention: with the identity as values, it returns the weights."""
    values = torch.eye(keys.shape[-2]).expand(*keys.shape[:-1], keys.shape[-2])
    return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)


def past_of(scores, diagonal=0):
    return torch.ones(scores.shape[-2:], dtype=torch.bool).tril(diagonal)


def hide(scores, past):
    return scores.masked_fill(~past, -math.inf)


def turned(x):
    return x.mT


def weights(
    queries,
    keys,
    mask=hide,
    diagonal=0,
    turn=False,
    power=0.5,
    dim=-1,
    swap=turned,
    axis=-1,
):
    scores = queries @ swap(keys) / keys.shape[axis] ** power
    past = past_of(scores, diagonal)
    return mask(scores, past.mT if turn else past).softmax(dim)


def zeros_afterwards(queries, keys):
    scores = queries @ keys.mT / keys.shape[-1] ** 0.5
    return scores.softmax(-1) * past_of(scores)


WEIGHTS = Exercise(
    "3.3",
    "causal attention weights",
    causal_weights,
    cases={
        "three tokens, K = 4": (numbers(3, 4), numbers(3, 4, seed=2)),
        "2 texts, 3 heads, 5 tokens, K = 2": (
            numbers(2, 3, 5, 2),
            numbers(2, 3, 5, 2, seed=2),
        ),
        "a single token": (numbers(1, 4), numbers(1, 4, seed=2)),
    },
    differentiable=True,
    notice="What does the first row of any such table look like, and why?",
    mistakes=[
        Mistake(
            partial(weights, mask=lambda scores, past: scores),
            "The future still has weight: nothing is hidden.",
            "facebookresearch/xformers#103",
        ),
        Mistake(
            zeros_afterwards,
            "The rows no longer add up to 1: the softmax had already shared out weight "
            "to the future when you took it away. What must come first?",
            "huggingface/pytorch-image-models#2236",
        ),
        Mistake(
            partial(weights, mask=torch.mul),
            "The future still has weight: a score of 0 is not nothing, softmax makes "
            "e⁰ = 1 of it. Of which score does it make 0?",
            "abisee/pointer-generator#88",
        ),
        Mistake(
            partial(weights, turn=True),
            "Your tokens look at the future and not at the past: the other triangle.",
            "karpathy/nanoGPT#170",
        ),
        Mistake(
            partial(weights, diagonal=1),
            "Every token sees one token too many, the very one that it should predict. "
            "Look up the argument `diagonal` of `tril` and `triu`.",
            "section 3.5",
        ),
        Mistake(
            partial(weights, diagonal=-1),
            "A token may look at itself. Your first row has nothing to look at, hence "
            "the `nan`. Look up the argument `diagonal` of `tril` and `triu`.",
            "pytorch/pytorch#103749",
        ),
        Mistake(
            partial(weights, dim=-2),
            "Your columns add up to 1, not your rows. Each query shares out its own "
            "attention: over which axis does the softmax run?",
            "MicrosoftDocs/pytorchfundamentals#4",
        ),
        Mistake(
            partial(weights, power=0),
            "Nearly. What are the scores divided by?",
            "section 3.4",
        ),
        Mistake(
            partial(weights, power=1),
            "Nearly. You divide the scores by K itself.",
            "imsmile2000.tistory.com/144",
        ),
        Mistake(
            partial(weights, axis=-2),
            "Nearly. You divide by √T. Which axis holds the K numbers of a query?",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(weights, dim=1),
            "Right for (T, K) alone. With texts and heads in front, axis 1 is another "
            "one: from which end can you count?",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(weights, swap=lambda k: k.permute(*range(k.ndim)[::-1])),
            "`.T` turns all axes round, also those of the texts and the heads, and "
            "`len` counts along the first one. The tokens lie on axis −2, the numbers "
            "of a token on axis −1: what names only these?",
            "section 3.6",
        ),
    ],
)

# --- 3.4 a test for leaks ------------------------------------------------------------


def running_mean(x):
    return x.cumsum(dim=0) / torch.arange(1, len(x) + 1)[:, None]


def leaks_at_the_end(x):
    mean = running_mean(x)
    return torch.cat([mean[:-2], mean[-2:-1] + 0.1 * x[-1:], mean[-1:]])


def leaks_at_the_start(x):
    mean = running_mean(x)
    return torch.cat([mean[:1] + 0.1 * x[1:2].sum(dim=0), mean[1:]])


def refuse_leaks(layer, x, changed=None, compared=None, shift=0):
    for t in range(1, len(x)) if changed is None else [changed]:
        other = x.clone()
        other[t:] += 1
        until = compared or t % len(x) + shift
        assert torch.allclose(layer(other)[:until], layer(x)[:until])


X = (numbers(6, 2),)
LEAKS = Exercise(
    "3.4",
    "a test that catches leaks",
    refuse_leaks,
    judge=refuses,
    cases={
        "a running mean, which is causal": (running_mean, *X),
        "a layer that sees one token ahead": (
            lambda x: running_mean(x.roll(-1, 0)),
            *X,
        ),
        "a layer where only the last token leaks": (leaks_at_the_end, *X),
        "a layer where only the first token peeks": (leaks_at_the_start, *X),
        "a layer that sees the token after the next": (
            lambda x: running_mean(x) + F.pad(x[2:], (0, 0, 0, 2)),
            *X,
        ),
        "a layer that subtracts the mean of the text": (
            lambda x: running_mean(x) - x.mean(dim=0),
            *X,
        ),
    },
    notice="Yours refused five broken layers and let the good one pass. What would a "
    "layer have to do to slip through?",
    mistakes=[
        Mistake(
            lambda layer, x: layer(x),
            "Your test lets every layer pass. Does it change a token of x, does the "
            "layer still get (T, D), and do you `assert` anything about its outputs?",
            "HomebrewML/Olmax#78",
        ),
        Mistake(
            partial(refuse_leaks, changed=-1),
            "You change only the last token. What of a leak between two earlier ones?",
            "google/trax#1539",
        ),
        Mistake(
            partial(refuse_leaks, changed=1, compared=1),
            "You compare only the first output. What of a leak into a later one?",
            "karpathy/nanochat#845",
        ),
        Mistake(
            partial(refuse_leaks, shift=1),
            "You refuse the good layer, too. May an output change with its own token? "
            "And is the x that you compare with still the one that came?",
            "section 3.5",
        ),
    ],
)

# --- 3.5 heads -----------------------------------------------------------------------


class Heads:
    """Split and join as einops would write them: b t (h k) -> b h t k, and back."""

    def __init__(self, n_heads, split="bthk->bhtk", sizes="thk", join=None):
        self.n_heads, self.rule, self.sizes = n_heads, split, sizes
        self.join_wrongly = join

    def split(self, x):
        B, T, D = x.shape
        size = {"t": T, "h": self.n_heads, "k": D // self.n_heads}
        return torch.einsum(self.rule, x.reshape(B, *(size[s] for s in self.sizes)))

    def join(self, heads):
        if self.join_wrongly:
            return self.join_wrongly(heads)
        return torch.cat(heads.unbind(1), dim=-1)


def joined_as_they_lie(heads):
    return heads.reshape(len(heads), heads.shape[2], -1)


def split_and_join(cls, n_heads, x):
    """Return the heads, and what becomes of heads that were split rightly."""
    heads = cls(n_heads)
    return [heads.split(x), heads.join(Heads(n_heads).split(x).contiguous())]


HEADS_CLASS = Exercise(
    "3.5",
    "split into heads, and join them",
    Heads,
    judge=split_and_join,
    cases={
        "two tokens, three heads": (3, torch.arange(12.0).view(1, 2, 6)),
        "2 texts, 4 tokens, 2 heads": (2, numbers(2, 4, 8)),
    },
    notice="`view` moves nothing, nor does `transpose`: only joining copies.",
    mistakes=[
        Mistake(
            partial(Heads, split="bhtk->bhtk", sizes="htk"),
            "The shape of `split` is right, the numbers are not: a head holds numbers "
            "of whole tokens. In which order does `view` read them?",
            "hyunwoongko/transformer#15",
        ),
        Mistake(
            lambda n: Heads(n, "bhtk->bhtk", "htk", joined_as_they_lie),
            "In both methods the shapes are right and the numbers are not: a head "
            "holds numbers of whole tokens. In which order does `view` read them?",
            "a trial of this exercise",
        ),
        Mistake(
            partial(Heads, split="btkh->bhtk", sizes="tkh"),
            "Each of your heads takes every third or second number of a token. The "
            "first head has the first K of them.",
            "lsdefine/attention-is-all-you-need-keras#36",
        ),
        Mistake(
            partial(Heads, split="bthk->bthk"),
            "Cut into heads, but the tokens still come first: which axes are to be "
            "swapped?",
            "harvardnlp/annotated-transformer#118",
        ),
        Mistake(
            partial(Heads, join=joined_as_they_lie),
            "`split` is right. `join` mixes up the tokens: what had you swapped, and "
            "must swap back first?",
            "ajhalthor/Transformer-Neural-Network#8",
        ),
        Mistake(
            partial(
                Heads, join=lambda h: h.transpose(1, 2).view(len(h), h.shape[2], -1)
            ),
            "`split` is right. In `join`, `view` cannot read numbers in an order in "
            "which they do not lie. Which method copies where it must?",
            "section 3.7",
        ),
    ],
)

# --- 3.6 the size of a cache ---------------------------------------------------------

SIZE = Exercise(
    "3.6",
    "the size of a cache",
    2 * 12 * 12 * 64 * 1000 * 4,
    notice="74 MB for one text: a hundred readers at once outweigh the model.",
    mistakes=[
        Mistake(
            12 * 12 * 64 * 1000 * 4,
            "Half of what is kept. Is there something besides the keys? And how many "
            "bytes are 32 bits?",
            "LMCache/LMCache#2411",
        ),
        Mistake(
            2 * 12 * 12 * 64 * 1000,
            "So many numbers. How many bytes has each?",
            "section 3.12",
        ),
        Mistake(
            2 * 12 * 64 * 1000 * 4,
            "One 12 is missing: there are 12 layers, and in each of them 12 heads.",
            "mudler/vllm.cpp#357",
        ),
        Mistake(
            2 * 12 * 12 * 768 * 1000 * 4,
            "The heads are counted twice: 768 is what all twelve have together.",
            "jranaraki/vllm-fit#2",
        ),
        Mistake(
            12 * 12 * 64 * 1000,
            "So many numbers are in the keys. What else is kept, and how many bytes "
            "has each number?",
            "a trial of this exercise",
        ),
        Mistake(
            2 * 12 * 12 * 64 * 1000 * 32,
            "Float32 has 32 bits. How many bytes are that?",
            "a trial of this exercise",
        ),
        Mistake(
            2 * 12 * 12 * 64 * 1024 * 4,
            "Right for 1,024 tokens; this text has 1,000.",
            "a trial of this exercise",
        ),
        Mistake(
            12 * 12 * 1000 * 1000 * 4,
            "These are the scores of all pairs of tokens. They are used once and "
            "thrown away: what is needed again for the next token?",
            "a trial of this exercise",
        ),
    ],
)

# --- 3.7 softmax that runs along -----------------------------------------------------


def running(pairs, shrink_total=True, shrink_mixed=True, shift=True, **also):
    largest = also.get("largest", -math.inf)
    total = mixed = torch.zeros(1)
    for score, value in pairs:
        new = max(largest, score) if shift else 0.0
        shrink = math.exp(largest - new) if shift else 1.0
        # Infinity, where math.exp would raise
        power = also.get("exp", lambda x: torch.tensor(x).exp())(score - new)
        total = (shrink if shrink_total else 1) * total + power
        mixed = (shrink if shrink_mixed else 1) * mixed + power * value
        largest = new
    return mixed / total if also.get("divide", True) else mixed


def at_once(pairs):
    scores, values = zip(*pairs, strict=True)
    return torch.tensor(scores).softmax(0) @ torch.stack(values)


def as_a_stream(answer, scores, values):
    return answer(zip(scores.tolist(), values, strict=True))


RUNNING = Exercise(
    "3.7",
    "softmax that runs along",
    at_once,
    judge=as_a_stream,
    cases={
        "the largest score comes first": (
            torch.tensor([2.0, 1.0, 0.0]),
            numbers(3, 2),
        ),
        "the largest score comes last": (torch.tensor([0.0, 1.0, 3.0]), numbers(3, 2)),
        "scores of a thousand": (torch.tensor([1000.0, 998.0, 1001.0]), numbers(3, 2)),
        "scores of minus a thousand": (torch.tensor([-999.0, -1e3]), numbers(2, 2)),
        "first 0, then a thousand": (torch.tensor([0.0, 1e3]), numbers(2, 2)),
    },
    notice="Two numbers and a vector are enough, if that is what you kept.",
    mistakes=[
        Mistake(
            partial(running, shift=False),
            "Small scores work. How large is e to the power of 1000, as a float? "
            "Subtract the largest score that you have seen so far.",
            "section 3.8",
        ),
        Mistake(
            partial(running, shift=False, exp=math.exp),
            "Small scores work. e to the power of 1000 is too large for a float. "
            "Subtract the largest score that you have seen so far.",
            "a trial of this exercise",
        ),
        Mistake(
            partial(running, largest=0.0),
            "All scores may be far below 0, and then your largest is one that never "
            "came. With what must it begin, so that every score is larger?",
            "a trial of this exercise",
        ),
        Mistake(
            lambda pairs: [*pairs] and 0.0 / len([*pairs]),
            "You go through the stream twice, and the second time it is empty. Which "
            "largest score do you know while it runs?",
            "a trial of this exercise",
        ),
        Mistake(
            partial(running, shrink_total=False, shrink_mixed=False),
            "When a larger score turns up, what is in the sums was made with the old "
            "largest. What must happen to it?",
            "section 3.8",
        ),
        Mistake(
            partial(running, shrink_mixed=False),
            "The total shrinks when a larger score turns up. And the mixture?",
            "Dao-AILab/flash-attention#2082",
        ),
        Mistake(
            partial(running, shrink_total=False),
            "The mixture shrinks when a larger score turns up. And the total?",
            "Dao-AILab/flash-attention#2082",
        ),
        Mistake(
            partial(running, divide=False),
            "The weights do not add up to 1. What is still to be done at the end?",
            "section 3.8",
        ),
    ],
)

# --- 3.8 mend the cache --------------------------------------------------------------


class Cache:
    """Room for keys; `grow` says how the length goes on, `cut` what is handed out."""

    def __init__(self, room, grow=lambda length, n: length + n, cut=True, start=None):
        self.keys, self.length = torch.zeros(room, 2), 0
        self.grow, self.cut, self.start = grow, cut, start

    def append(self, new):
        start = self.length if self.start is None else self.start(self.length)
        self.keys[start : start + len(new)] = new
        self.length = self.grow(self.length, len(new))
        return self.keys[: self.length] if self.cut else self.keys


def fill(cls, room, *parts):
    """Return what a cache hands out after every part."""
    cache = cls(room)
    return [x if (x := cache.append(p)) is None else x.clone() for p in parts]


NEW = numbers(6, 2)
forgets = partial(Cache, grow=lambda length, n: length + 1)
CACHE = Exercise(
    "3.8",
    "mend the cache",
    Cache,
    judge=fill,
    faulty=forgets,
    cases={
        "one token after the other": (4, NEW[:1], NEW[1:2], NEW[2:3]),
        "a prompt of three, then two tokens": (6, NEW[:3], NEW[3:4], NEW[4:5]),
        "two prompts, one after the other": (6, NEW[:2], NEW[2:5]),
    },
    notice="No error was raised, and one token after the other was right. Test a cache "
    "with a prompt, and then with one more token.",
    mistakes=[
        Mistake(
            partial(Cache, grow=lambda length, n: n),
            "Now the cache starts again at every call. What of the tokens before?",
            "huggingface/transformers#36151",
        ),
        Mistake(
            partial(forgets, cut=False),
            "All that was written is handed out now, and the empty room with it. But "
            "the next token still lands in the wrong place.",
            "tenstorrent/tt-metal#54413",
        ),
        Mistake(
            partial(Cache, grow=lambda length, n: length + n - (n > 1)),
            "After a prompt, its last token is missing: off by one.",
            "UChi-JCL/CacheGen#8",
        ),
    ],
)

# --- 3.9 a project: texts of unequal length, word by word ----------------------------


def padding_mask(n_tokens, pad_left, causal=True, real=True, own=True):
    position = torch.arange(n_tokens)
    mask = torch.ones(len(pad_left), n_tokens, n_tokens, dtype=torch.bool)
    mask = mask.tril() if causal else mask
    mask = mask & (position >= pad_left[:, None])[:, None] if real else mask
    return mask | torch.eye(n_tokens, dtype=torch.bool) if own else mask


def blind_queries(n_tokens, pad_left):
    padding = torch.arange(n_tokens) < pad_left[:, None]
    past = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()
    return (past & ~padding[:, :, None]) | torch.eye(n_tokens, dtype=torch.bool)


MASK = Exercise(
    "3.9a",
    "a mask for padded texts",
    padding_mask,
    cases={
        "a text with one padding token": (3, torch.tensor([1])),
        "three texts": (4, torch.tensor([0, 2, 1])),
    },
    notice="Padding looks at itself only. Nobody will ever read what it takes in.",
    mistakes=[
        Mistake(
            partial(padding_mask, real=False),
            "The padding is still looked at.",
            "section 3.13",
        ),
        Mistake(
            partial(padding_mask, causal=False),
            "The future is still looked at.",
            "facebookresearch/xformers#103",
        ),
        Mistake(
            partial(padding_mask, own=False),
            "A padding token may look at nothing now, and a softmax over nothing is "
            "`nan`. Whom could it look at without harm?",
            "pytorch/pytorch#103749",
        ),
        Mistake(
            blind_queries,
            "You hide rows: those who look. Who must not be looked at is a column.",
            "lsdefine/attention-is-all-you-need-keras#16",
        ),
        Mistake(
            lambda n, pad: ~padding_mask(n, pad),
            "The other way round: True is wanted where a token may be looked at.",
            "section 3.8: PyTorch's own layer marks what is hidden",
        ),
        Mistake(
            lambda n, pad: padding_mask(n, pad + 1),
            "The first real word is hidden, too. Where does it stand if there is one "
            "padding token?",
            "a trial of this exercise",
        ),
    ],
)


def masked_attention(queries, keys, values, mask, **wrong):
    mask = mask if wrong.get("axis") else mask[:, None]
    mask = mask * -1e9 if wrong.get("turned") else mask
    if wrong.get("scale"):
        queries = queries * (queries.shape[-1] / wrong["scale"](queries)) ** 0.5
    heads = F.scaled_dot_product_attention(queries, keys, values, mask)
    if wrong.get("apart"):
        return wrong["apart"](heads)
    return heads.transpose(1, 2).flatten(2)


def hide_the_seen(queries, keys, values, mask):
    scores = queries @ keys.mT / keys.shape[-1] ** 0.5
    return (
        (hide(scores, ~mask[:, None]).softmax(-1) @ values).transpose(1, 2).flatten(2)
    )


ATTENTION = Exercise(
    "3.9b",
    "attention with that mask",
    masked_attention,
    cases={
        "2 texts, 3 heads, 4 tokens, K = 2": (
            *(numbers(2, 3, 4, 2, seed=s) for s in (1, 2, 3)),
            padding_mask(4, torch.tensor([0, 2])),
        ),
        "2 texts, 2 heads, 3 tokens, K = 2": (
            *(numbers(2, 2, 3, 2, seed=s) for s in (4, 5, 6)),
            padding_mask(3, torch.tensor([1, 0])),
        ),
    },
    differentiable=True,
    notice="A wrong mask is loudest where the padding's values are large.",
    mistakes=[
        Mistake(
            partial(masked_attention, axis=True),
            "Your mask meets heads where it should meet texts. It is (B, T, T), the "
            "scores are (B, H, T, T): where does it need an axis of size 1?",
            "harvardnlp/annotated-transformer#17",
        ),
        Mistake(
            partial(masked_attention, turned=True),
            "The mask says who may be looked at, and you hide exactly these.",
            "section 3.8",
        ),
        Mistake(
            hide_the_seen,
            "The mask says who may be looked at, and you hide exactly these.",
            "section 3.8",
        ),
        Mistake(
            partial(masked_attention, scale=lambda q: 1),
            "Nearly. What are the scores divided by?",
            "section 3.4",
        ),
        Mistake(
            partial(masked_attention, apart=joined_as_they_lie),
            "The shape is right, but numbers of different tokens stand side by side. "
            "Which axes must be swapped back first?",
            "a trial of this exercise",
        ),
        Mistake(
            lambda q, k, v, m: masked_attention(q, k, v, past_of(m)[None]),
            "The future is hidden, and the padding is not. What did you do with the "
            "mask?",
            "a trial of this exercise",
        ),
        Mistake(
            partial(masked_attention, scale=lambda q: q.shape[1] * q.shape[3]),
            "Nearly. You divide by √D; each head has K numbers.",
            "FareedKhan-dev/train-llm-from-scratch#3",
        ),
        Mistake(
            partial(masked_attention, apart=lambda heads: heads),
            "The heads are not yet side by side.",
            "section 3.7",
        ),
    ],
)


def word_by_word(parts, first=0, scale=None, is_causal=False):
    contexts = []
    seen: list = []
    for query, key, value in parts:
        seen = [*seen, (key, value)][first:]
        keys, values = (torch.stack(column) for column in zip(*seen, strict=True))
        attend = partial(
            F.scaled_dot_product_attention, is_causal=is_causal, scale=scale
        )
        contexts.append(attend(query[None], keys, values)[0])
    return contexts


def with_the_future(parts):
    queries, keys, values = (torch.stack(p) for p in zip(*parts, strict=True))
    return F.scaled_dot_product_attention(queries, keys, values)


def as_written(answer, *parts):
    found = answer(zip(*parts, strict=True))
    return found if found is None else [*found]


WORDS = Exercise(
    "3.9c",
    "the same, word by word",
    word_by_word,
    judge=as_written,
    cases={
        "four tokens, K = 2": tuple(numbers(4, 2, seed=s) for s in (1, 2, 3)),
        "one token": tuple(numbers(1, 2, seed=s) for s in (1, 2, 3)),
    },
    notice="No mask is needed: what is not written yet cannot be looked at.",
    mistakes=[
        Mistake(
            partial(word_by_word, first=-1),
            "Every word looks only at itself. Where do the keys and values of the "
            "words before it stay?",
            "section 3.11",
        ),
        Mistake(
            partial(word_by_word, is_causal=True),
            "Every word looks only at the first one. What does `is_causal` do to a "
            "single query?",
            "pytorch/pytorch#144858",
        ),
        Mistake(
            partial(word_by_word, scale=1),
            "Nearly. What are the scores divided by?",
            "section 3.4",
        ),
        Mistake(
            with_the_future,
            "You have read the whole text before you began. What had been written when "
            "the first word was asked?",
            "section 3.5",
        ),
    ],
)

check = Checks(
    SOFTMAX, SHAPES, WEIGHTS, LEAKS, HEADS_CLASS, SIZE, RUNNING, CACHE,
    MASK, ATTENTION, WORDS,
)  # fmt: skip
