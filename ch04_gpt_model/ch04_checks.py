"""What the exercises of chapter 4 are checked with. It gives them away: try first."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from shared.support.exercises import Checks, Exercise, Mistake, numbers, refuses

# --- 4.1 -----------------------------------------------------------------------------


def wrongly(dim=-1, less=0, power=0.5, fixed=None, raw=False, outside=False):
    """Return layer normalisation with something changed."""

    def layer_norm(x, weight, bias, eps=1e-5):
        eps = eps if fixed is None else fixed
        centred = x - x.mean(dim, keepdim=True)
        total = (x if raw else centred).square().sum(dim, keepdim=True)
        variance = total / (x.numel() / total.numel() - less)
        size = variance**0.5 + eps if outside else (variance + eps) ** power
        return centred / size * weight + bias

    return layer_norm


def layer_norm(x, weight, bias, eps=1e-5):
    return F.layer_norm(x, weight.shape, weight, bias, eps)


VECTOR, PLAIN = torch.tensor([1.0, 2, 3, 6]), (torch.ones(4), torch.zeros(4))
SCALED = numbers(4, seed=1), numbers(4, seed=2)
LAYER_NORM = Exercise(
    "4.1",
    "layer normalisation",
    layer_norm,
    cases={
        "the vector (1, 2, 3, 6)": (VECTOR, *PLAIN),
        "2 texts of 3 tokens": (numbers(2, 3, 4, seed=0), *SCALED),
        "all numbers alike": (torch.full((2, 4), 3.0), *PLAIN),
        "the vector (1, 2, 3, 6), eps = 0.5": (VECTOR, *PLAIN, 0.5),
    },
    differentiable=True,
    notice="Each token is treated alone, so nothing can leak from a later one here.",
    mistakes=[
        Mistake(
            wrongly(less=1),
            "Nearly. Your variance divides by D − 1, as `var` and `std` do unless told "
            "otherwise. We describe this one vector and estimate nothing.",
            "discuss.pytorch.org/t/34769",
        ),
        Mistake(
            wrongly(dim=None),
            "All tokens share one mean. Over which axis does your `mean` run?",
            "section 4.2: each token's vector",
        ),
        Mistake(
            wrongly(dim=0),
            "You normalise over the first axis. A token's own D numbers are the last.",
            "EvoNorms-in-TensorFlow-2 issue 1: the wrong axis",
        ),
        Mistake(
            lambda x, weight, bias, eps=1e-5: F.layer_norm(x, weight.shape, eps=eps),
            "The vectors are normalised. What are `weight` and `bias` for?",
            "our own trial",
        ),
        Mistake(
            wrongly(power=1),
            "You divide by the variance. What brings the size to 1 is its root.",
            "TPlinker-joint-extraction issue 37",
        ),
        Mistake(
            wrongly(raw=True),
            "You divide by the root of the mean square of x. A variance is the mean "
            "square of something else: of what?",
            "RMSNorm, section 4.9",
        ),
        Mistake(
            wrongly(fixed=0),
            "All numbers alike: the variance is 0 and you divide 0 by 0. Hence eps.",
            "TIM-VX pull request 589: nan for (2, 2, 2, 2, 2, 2)",
        ),
        Mistake(
            wrongly(fixed=1e-5),
            "Right with the usual eps. But `eps` is an argument: use the one that "
            "comes in.",
            "a learner's trial of ours",
        ),
        Mistake(
            wrongly(outside=True),
            "You add eps to the root. It belongs to the variance, before the root is "
            "taken.",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda x, weight, bias, eps=1e-5: layer_norm(x, weight, 0 * bias, eps),
            "Normalised and scaled, that is right. What is `bias` for?",
            "a learner's trial of ours",
        ),
    ],
)

# --- 4.2 -----------------------------------------------------------------------------

V, CONTEXT, D = 1000, 64, 32
PARTS: list[nn.Module] = [nn.Embedding(V, D), nn.Embedding(CONTEXT, D)]
PARTS += [nn.TransformerEncoderLayer(D, 4, 4 * D) for _ in range(3)]
PARTS += [nn.LayerNorm(D), nn.Linear(D, V, bias=False)]
ALL = sum(p.numel() for part in PARTS for p in part.parameters())
COUNT = Exercise(
    "4.2",
    "count a model's parameters",
    ALL,
    notice="More than half of them are in the two tables that have V as a side.",
    mistakes=[
        Mistake(
            ALL - V * D,
            "One of the two V × D tables is missing. This head is not tied.",
            "modded-nanogpt issue 26; transformers issue 14960",
        ),
        Mistake(ALL - CONTEXT * D, "Where does a token stand?", "section 4.1"),
        Mistake(
            ALL - 3 * 9 * D,
            "Linear layers in the blocks have biases, one number for each output.",
            "the chapter's rule of thumb, 12 D²",
        ),
        Mistake(
            ALL - 3 * 13 * D,
            "The matrices are right. Which vectors does a block have?",
            "the chapter's rule of thumb, 12 D²",
        ),
        Mistake(
            ALL - 2 * D, "A norm comes after the last block.", "section 4.5, at its end"
        ),
        Mistake(
            ALL + 3 * 3 * 4 * (D**2 + D),
            "You counted attention once for every head. Heads share out the D columns "
            "of each matrix: more heads are not more parameters.",
            "our own trial",
        ),
        Mistake(
            ALL - 3 * (D**2 + D),
            "Attention has one more matrix, and its bias: what happens after the "
            "heads?",
            "a learner's trial of ours",
        ),
        Mistake(
            ALL - 3 * 2 * D,
            "You count one norm for each block. How many branches has a block?",
            "a learner's trial of ours",
        ),
        Mistake(
            ALL - 7 * D,
            "A norm has two vectors: one multiplies, and the other?",
            "a learner's trial of ours",
        ),
        Mistake(
            ALL - 3 * 3 * D,
            "A bias is as long as what comes out of its layer. How many numbers come "
            "out of the MLP's first one?",
            "a learner's trial of ours",
        ),
        Mistake(
            ALL - 2 * (12 * D**2 + 13 * D),
            "That is a model with one block. This one has 3 layers.",
            "a learner's trial of ours",
        ),
        Mistake(
            ALL + V,
            "You gave the head a bias. It has none.",
            "a learner's trial of ours",
        ),
    ],
)

# --- 4.3 -----------------------------------------------------------------------------

TOKENS, K = 8192, 128


def smallest_first(latents=1, window=1024, heads=32) -> list[str]:
    """Return the five names in the order of their caches."""
    sizes = {"MHA": TOKENS * 2 * 32 * K, "GQA": TOKENS * 2 * 8 * K}
    sizes |= {"MQA": TOKENS * 2 * K, "MLA": latents * TOKENS * 576}
    sizes["window"] = window * 2 * heads * K
    return sorted(sizes, key=sizes.__getitem__)


ORDER = Exercise(
    "4.3",
    "five caches in order",
    smallest_first(),
    notice="Numbers a token in a layer: 256, 576, 1,024 (on average), 2,048, 8,192.",
    mistakes=[
        Mistake(
            smallest_first()[::-1],
            "The order is right, but it begins with the largest.",
            "our own trial",
        ),
        Mistake(
            smallest_first(latents=2),
            "One latent serves keys and values alike: it is cached once.",
            "section 4.19: keys = values = c",
        ),
        Mistake(
            smallest_first(latents=32),
            "The latent is not kept for every head: all of them read the same one.",
            "section 4.19's prediction",
        ),
        Mistake(
            ["MLA", "MQA", "window", "GQA", "MHA"],
            "A latent of 512 numbers sounds short. What do a key and a value of one "
            "head have together?",
            "our own trial",
        ),
        Mistake(
            smallest_first(heads=1),
            "The window model shares nothing: each of its 1,024 entries has keys and "
            "values of all 32 heads.",
            "our own trial",
        ),
        *(
            Mistake(
                smallest_first(window=window),
                "A window of 1,024 is an eighth of the text, and 32 heads are four "
                "times 8. Which of the two counts more?",
                "a learner's trial of ours",
            )
            for window in (4096, 9999)
        ),
        Mistake(
            [name.lower() for name in smallest_first()],
            "The order is right. Write the names as they stand in the list, with their "
            "capitals.",
            "a learner's trial of ours",
        ),
    ],
)

# --- 4.4 -----------------------------------------------------------------------------


def slope_of(function):
    """Return the derivative of a function of single numbers, by autograd."""
    return torch.func.grad(lambda x: function(x).sum())


below = torch.special.ndtr  # the probability of a normal number below x


def bell(x, power=-0.5, constant=(2 * math.pi) ** 0.5):
    return torch.exp(power * x**2) / constant


GELU = Exercise(
    "4.4",
    "the slope of GELU",
    slope_of(F.gelu),
    cases={
        "x = −2, −1.5, −1, −0.5, 0, 0.5, 1, 1.5, 2": (torch.linspace(-2, 2, 9),),
        "a table": (numbers(2, 3, seed=0),),
    },
    notice="Left of −0.75 the slope is negative: there GELU falls before it rises.",
    mistakes=[
        Mistake(
            lambda x: below(x),
            "You differentiated the x in front and left the rest alone. GELU is a "
            "product, and x stands in its second factor too.",
            "our own trial",
        ),
        Mistake(
            lambda x: below(x) + bell(x),
            "Nearly: in the second term a factor is missing. Look at the product rule.",
            "onnxruntime issue 13512: a reader looks for a missing factor",
        ),
        Mistake(
            lambda x: below(x) + x * bell(x, constant=1),
            "Nearly: the area under your bell curve is not 1.",
            "FlagGems pull request 159: which constant is which?",
        ),
        Mistake(
            bell,
            "You multiplied the slopes of the two factors. That is not the slope of a "
            "product.",
            "school calculus",
        ),
        Mistake(
            slope_of(lambda x: F.gelu(x, approximate="tanh")),
            "This is the slope of the tanh form. Asked for is the exact one.",
            "mlpack pull request 3994: the two forms differ a little",
        ),
        Mistake(
            lambda x: below(x) + x * bell(x, power=-1),
            "Nearly: your bell curve is too narrow. What is its exponent divided by?",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda x: below(x) + x * bell(x, power=0.5),
            "Your bell curve grows to both sides. Which sign has its exponent, and "
            "is it squared, too?",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda x: below(x) - x * bell(x),
            "Nearly: one of the two terms has the wrong sign. The bell is the slope "
            "of Φ as it is.",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda x: below(x * math.sqrt(2)) + x * bell(x),
            "The bell is right, Φ is not, except at 0. What stands inside erf?",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda x: x * bell(x),
            "That is one of the two terms. The x in front has a slope, too.",
            "a learner's trial of ours",
        ),
        Mistake(
            F.gelu,
            "That is GELU itself. How steep is it?",
            "a learner's trial of ours",
        ),
        *(
            Mistake(
                lambda x, by=by: below(x) + x * bell(x, constant=by),
                "Nearly: the constant of your bell curve is not √(2π). How far does "
                "the root reach, and is all of it below the line?",
                "a learner's trial of ours",
            )
            for by in (2**0.5 * math.pi, 2**0.5 / math.pi, 2 * math.pi)
        ),
    ],
)

# --- 4.5 -----------------------------------------------------------------------------


def run_block(block_class, x):
    """Make a block of the parts of one of PyTorch's, and let x (B, T, D) through."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, F.gelu, 1e-5, True, True)
    for norm in (layer.norm1, layer.norm2):  # so that one cannot stand for the other
        nn.init.normal_(norm.weight, mean=1.0, std=0.5)
    mlp = nn.Sequential(layer.linear1, nn.GELU(), layer.linear2)
    return block_class(layer.norm1, Attention(layer), layer.norm2, mlp)(x)


class Attention(nn.Module):
    """The attention of one of PyTorch's own blocks: x -> context vectors."""

    def __init__(self, layer: nn.TransformerEncoderLayer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer.self_attn(x, x, x, need_weights=False)[0]


def as_block(forward):
    """Return a class of block; `forward` takes x and the four parts."""
    return lambda *parts: lambda x: forward(x, *parts)


BLOCK = Exercise(
    "4.5",
    "a transformer block from parts",
    as_block(lambda x, norm1, attention, norm2, mlp: attention.layer(x)),
    judge=run_block,
    cases={
        "2 texts of 5 tokens": (numbers(2, 5, 8, seed=0),),
        "a token": (numbers(1, 1, 8, seed=0),),
    },
    notice="Nothing in the stream was replaced: both branches only added to it.",
    mistakes=[
        Mistake(
            as_block(lambda x, n1, a, n2, m: n2(n1(x + a(x)) + m(n1(x + a(x))))),
            "That is post-norm, the order of the original Transformer. In pre-norm a "
            "branch begins with its norm, and the sum is left alone.",
            "annotated-transformer issue 110",
        ),
        Mistake(
            as_block(lambda x, n1, a, n2, m: (h := n2(n1(x) + a(n1(x)))) + m(h)),
            "You normalise the stream itself, so the shortcut carries the normalised "
            "vector. The norm belongs on the branch; x goes past it untouched.",
            "pytorch issue 61165; faster-trajectory-transformer issue 3",
        ),
        Mistake(
            as_block(lambda x, n1, a, n2, m: m(n2(a(n1(x))))),
            "The shortcuts are missing: what comes in is not in what goes out.",
            "section 4.4's stack without shortcuts",
        ),
        Mistake(
            as_block(lambda x, n1, a, n2, m: x + m(n2(a(n1(x))))),
            "You have one shortcut round the whole block. Each branch needs its own.",
            "our own trial",
        ),
        Mistake(
            as_block(lambda x, n1, a, n2, m: x + a(n1(x)) + m(n2(x))),
            "Your MLP reads the block's input. It should read the stream after "
            "attention has added to it.",
            "our own trial",
        ),
        Mistake(
            as_block(lambda x, n1, a, n2, m: (h := a(n1(x))) + m(n2(h))),
            "One shortcut is there, the second. After attention, x is not added.",
            "a learner's trial of ours",
        ),
        Mistake(
            as_block(lambda x, n1, a, n2, m: m(n2(x + a(n1(x))))),
            "One shortcut is there, the first. After the MLP, the stream is not added.",
            "a learner's trial of ours",
        ),
        Mistake(
            as_block(lambda x, n1, a, n2, m: (h := x + a(n1(x))) + m(n1(h))),
            "`norm1` stands on both branches. They have learned different weights.",
            "a learner's trial of ours",
        ),
        Mistake(
            as_block(lambda x, n1, a, n2, m: (h := x + a(x)) + m(n2(h))),
            "The MLP's branch is right. With what does attention's branch begin?",
            "a learner's trial of ours",
        ),
        Mistake(
            as_block(lambda x, n1, a, n2, m: (h := x + a(n1(x))) + m(h)),
            "Attention's branch is right. With what does the MLP's branch begin?",
            "a learner's trial of ours",
        ),
        Mistake(
            as_block(lambda x, n1, a, n2, m: (h := x + n1(a(x))) + n2(m(h))),
            "A norm ends each of your branches. In pre-norm it begins them.",
            "a learner's trial of ours",
        ),
        Mistake(
            as_block(lambda x, n1, a, n2, m: (h := x + m(n2(x))) + a(n1(h))),
            "Your MLP comes first. Tokens hear each other before each thinks by "
            "itself.",
            "a learner's trial of ours",
        ),
        Mistake(
            as_block(lambda x, n1, a, n2, m: x + m(n2(x + a(n1(x))))),
            "You add the MLP's result to the block's input, and what attention had "
            "added is lost.",
            "a learner's trial of ours",
        ),
    ],
)

# --- 4.6 -----------------------------------------------------------------------------


def turned(x, base=10_000.0):
    """Turn the pairs of x (..., T, K) as complex numbers."""
    T, width = x.shape[-2:]
    angles = torch.outer(torch.arange(T), base ** (-torch.arange(0, width, 2) / width))
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    by = torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(pairs * by).flatten(-2)


def turned_with(speed=2.0, sign=1.0, halves=False, side_by_side=False, place=None):
    """Return a rotation with something changed."""

    def rotate(x, base=10_000.0):
        T, width = x.shape[-2:]
        speeds = base ** (-speed * torch.arange(width // 2) / width)
        places = torch.arange(T) if place is None else place(torch.arange(T))
        angles = torch.outer(places, speeds)
        cos, sin = angles.cos(), angles.sin()
        a, b = x.chunk(2, -1) if halves else (x[..., 0::2], x[..., 1::2])
        pairs = [a * cos - sign * b * sin, sign * a * sin + b * cos]
        if halves or side_by_side:
            return torch.cat(pairs, -1)
        return torch.stack(pairs, -1).flatten(-2)

    return rotate


ROPE = Exercise(
    "4.6",
    "rotary positions",
    turned,
    cases={
        "(1, 0) at positions 0 to 3": (torch.tensor([[1.0, 0]] * 4),),
        "6 tokens, K = 8": (numbers(6, 8, seed=0),),
        "2 texts with 3 heads, base 100": (numbers(2, 3, 5, 4, seed=1), 100.0),
    },
    differentiable=True,
    notice="The token at position 0 is as it was. No vector has changed its length.",
    mistakes=[
        Mistake(
            turned_with(halves=True),
            "You pair number i with number i + K/2, as Hugging Face's code does. For a "
            "new model that is just as good. This course pairs neighbours.",
            "nanochat issue 264; gpt-neox issue 834",
        ),
        Mistake(
            turned_with(sign=-1.0),
            "You turn clockwise. Which of the two products has the minus?",
            "rasbt/LLMs-from-scratch issue 838: where the minus goes",
        ),
        Mistake(
            turned_with(speed=1.0),
            "Nearly: the first pair is right, the others are too fast. What does the "
            "exponent say for pair 1?",
            "xformers issue 779: the angles of the pairs",
        ),
        Mistake(
            turned_with(speed=4.0),
            "Nearly: the first pair is right, the others are too slow. Does your "
            "`arange` count pairs, or numbers?",
            "our own trial",
        ),
        Mistake(
            turned_with(speed=-2.0),
            "Your later pairs turn faster and faster. They should be slower. Which "
            "sign has the exponent?",
            "our own trial",
        ),
        Mistake(
            turned_with(side_by_side=True),
            "The numbers are right and in another order: first all first partners, "
            "then all second ones. Partners should be neighbours again.",
            "how-to-train-your-gpt pull request 7: cat against stack",
        ),
    ],
)

# --- 4.7 -----------------------------------------------------------------------------


def grouped(keys_by, values_by, causal=True):
    """Return attention whose key heads are copied in these two ways."""

    def attention(queries, keys, values):
        copies = queries.shape[1] // keys.shape[1]
        keys, values = keys_by(keys, copies), values_by(values, copies)
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=causal)

    return attention


def in_turns(x, n):
    return x.repeat(1, n, 1, 1)


in_groups = partial(torch.repeat_interleave, dim=1)


def heads(H, G):
    """Return queries (2, H, 5, 4), and keys and values (2, G, 5, 4)."""
    return tuple(numbers(2, n, 5, 4, seed=i) for i, n in enumerate([H, G, G]))


GROUPED = Exercise(
    "4.7",
    "keys for the wrong heads",
    partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True),
    faulty=grouped(in_turns, in_turns),
    cases={
        "6 heads, 2 of keys": heads(6, 2),
        "6 heads, 3 of keys": heads(6, 3),
        "one head of keys for all": heads(4, 1),
    },
    notice="With a single head of keys, and with one for each, the two orders are the "
    "same. A test with such a model could not have shown the fault.",
    mistakes=[
        Mistake(
            grouped(in_groups, in_turns),
            "The keys are right now. And the values?",
            "our own trial",
        ),
        Mistake(
            grouped(in_groups, in_groups, causal=False),
            "The order is right now, but tokens see what comes after them.",
            "PyTorch's default, is_causal=False",
        ),
    ],
)

# --- 4.8 -----------------------------------------------------------------------------


def all_scores(rotate, query, key, n=20):
    return rotate(query.expand(n, -1)) @ rotate(key.expand(n, -1)).T


def distances_only(rotate, query, key, most=1e-3):
    scores = all_scores(rotate, query, key)
    assert (scores[1:, 1:] - scores[:-1, :-1]).abs().max() <= most


def promise(rotate, query, key):
    distances_only(rotate, query, key)
    assert all_scores(rotate, query, key)[:, 0].std() > 1e-3


def lengths_only(rotate, query, key):
    lengths = rotate(query.expand(20, -1)).norm(dim=-1)
    assert (lengths - query.norm()).abs().max() < 1e-3


def my_formula(rotate, query, key):
    x = query.expand(20, -1)
    assert (rotate(x) - turned(x)).abs().max() < 1e-3


POSITIONS = {
    "rotary, pairs of neighbours": turned,
    "rotary, pairs of halves": turned_with(halves=True),
    "sines and cosines that are added": lambda x: x + turned(torch.ones_like(x)),
    "a sign is missing": lambda x: turned(x * torch.tensor([1.0, -1]).repeat(4)) + x,
    "hands that become slower": turned_with(place=lambda t: 4 * t**0.5),
    "a layer that does nothing": lambda x: x.clone(),
}
PAIR = numbers(8, seed=5), numbers(8, seed=6)
BREAK_IT = Exercise(
    "4.8",
    "break it: a test for rotary positions",
    promise,
    judge=refuses,
    cases={name: (layer, *PAIR) for name, layer in POSITIONS.items()},
    notice="Your test knows the promise, not the formula: so both good layers pass.",
    mistakes=[
        Mistake(
            lambda rotate, query, key: None,
            "Your test accepts every layer. Does it compare scores at several places, "
            "and does it raise `AssertionError`, as `assert` does?",
            "the prototype's trial: a test of shapes only",
        ),
        Mistake(
            lengths_only,
            "Two broken layers pass: one turns by angles of its own, one does nothing. "
            "Lengths, or one single place, do not show that. What is promised about "
            "scores at different places?",
            "section 4.10: lengths and angles",
        ),
        Mistake(
            my_formula,
            "You demand one formula, and refuse a good layer that pairs the numbers "
            "otherwise. What do both good layers promise?",
            "nanochat issue 264: halves reported as a fault",
        ),
        Mistake(
            partial(distances_only, most=0),
            "You refuse good layers, too. Sines and cosines are rounded: what is equal "
            "on paper is only nearly equal here. And three places back and three ahead "
            "are two things: their scores may differ.",
            "our own trial",
        ),
        Mistake(
            partial(distances_only, most=-1),
            "You refuse every layer, good ones too. Three places back and three ahead "
            "may differ; and what is equal on paper is only nearly equal here.",
            "a learner's trial of ours",
        ),
        Mistake(
            distances_only,
            "Equal scores at equal distance: that is half of it. A layer that does "
            "nothing does that as well. What must differ?",
            "our own trial",
        ),
    ],
)

# --- 4.9 -----------------------------------------------------------------------------


def small_gpt(n_layers=2, width=8, vocab_size=11, context=12):
    """Return weights of a small GPT, with the names that GPTModel gives them."""
    shapes: dict[str, tuple[int, ...]] = {"tok_emb.weight": (vocab_size, width)}
    shapes["pos_emb.weight"], linear, norms = (context, width), {}, ["final_norm"]
    for n in range(n_layers):
        norms += [f"blocks.{n}.norm1", f"blocks.{n}.norm2"]
        for name in ("W_query", "W_key", "W_value", "out_proj"):
            linear[f"blocks.{n}.attention.{name}"] = width, width
        linear[f"blocks.{n}.feed_forward.expand"] = 4 * width, width
        linear[f"blocks.{n}.feed_forward.project"] = width, 4 * width
    shapes |= {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    shapes |= {f"{norm}.{kind}": (width,) for norm in norms for kind in KINDS}
    named = enumerate(shapes.items())
    weights = {name: 0.6 * numbers(*s, seed=i) for i, (name, s) in named}
    return weights | {"out_head.weight": weights["tok_emb.weight"]}


def embedded(weights, token_ids):
    positions = torch.arange(token_ids.shape[1])
    return weights["tok_emb.weight"][token_ids] + weights["pos_emb.weight"][positions]


def torch_block(weights, n, x, n_heads):
    """Run block n as one of PyTorch's own."""
    own, state = f"blocks.{n}.", {}
    for kind in KINDS:
        parts = [f"{own}attention.W_{p}.{kind}" for p in ("query", "key", "value")]
        state[f"self_attn.in_proj_{kind}"] = torch.cat([weights[p] for p in parts])
        for theirs, ours in THEIRS.items():
            state[f"{theirs}.{kind}"] = weights[f"{own}{ours}.{kind}"]
    sizes = x.shape[-1], n_heads, 4 * x.shape[-1], 0.0, nn.GELU("tanh")
    layer = nn.TransformerEncoderLayer(*sizes, 1e-5, True, True)
    layer.load_state_dict(state)
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
    return layer(x, src_mask=mask).detach()


def block_with(slip="", form="tanh"):
    """Return a block written out, with a slip in it."""

    def block(weights, n, x, n_heads):
        def both(part):
            short = slip == "no biases" and "norm" not in part
            return [weights[f"blocks.{n}.{part}.{kind}"] for kind in KINDS[: 2 - short]]

        def norm(name, x):
            return x if slip == f"no {name}" else F.layer_norm(x, (D,), *both(name))

        B, T, D = x.shape
        n_heads = {"one head": 1, "K heads": D // n_heads}.get(slip, n_heads)
        h, heads, causal = norm("norm1", x), [], slip != "no mask"
        for part in ("query", "key", "value"):
            all_of_it = F.linear(h, *both(f"attention.W_{part}"))
            cut = all_of_it.view(B, T, n_heads, -1).transpose(1, 2)
            heads.append(all_of_it.view(cut.shape) if "not split" in slip else cut)
        scale = {"no root": 1.0, "root of D": D**-0.5}.get(slip)
        q, k, v = heads
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
        out = (out if "not joined" in slip else out.transpose(1, 2)).reshape(B, T, D)
        if slip != "not projected":
            out = F.linear(out, *both("attention.out_proj"))
        x = out if slip == "no first shortcut" else x + out
        h = F.linear(norm("norm2", x), *both("feed_forward.expand"))
        h = h if slip == "no GELU" else F.gelu(h, approximate=form)
        h = F.linear(h, *both("feed_forward.project"))
        return h if slip == "no second shortcut" else x + h

    return block


def scores_of(weights, token_ids, n_heads, norm=True, blocks=range):
    x = embedded(weights, token_ids)
    names = [name for name in weights if name.endswith("norm1.weight")]
    for n in blocks(len(names)):
        x = torch_block(weights, n, x, n_heads)
    last = weights["final_norm.weight"], weights["final_norm.bias"]
    x = F.layer_norm(x, x.shape[-1:], *last) if norm else x
    return x @ weights["tok_emb.weight"].T


def written(weights, ids, n_new, n_heads, all_again=True):
    new = ids
    for _ in range(n_new):
        scores = scores_of(weights, ids if all_again else new, n_heads)
        new = scores[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, new], dim=1)
    return ids


KINDS, PLACES = ("weight", "bias"), "pos_emb.weight"
THEIRS = {"linear1": "feed_forward.expand", "linear2": "feed_forward.project"}
THEIRS |= {"norm1": "norm1", "norm2": "norm2"}
THEIRS |= {"self_attn.out_proj": "attention.out_proj"}
WEIGHTS, ELEVEN = small_gpt(), small_gpt(11)
QUIET = {name: t * ("bias" not in name) for name, t in WEIGHTS.items()}
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
STREAM = numbers(2, 5, 8, seed=99)
EMBED = Exercise(
    "4.9a",
    "GPT-2 from its weights: the embedding",
    embedded,
    cases={"2 texts of 5 tokens": (WEIGHTS, IDS), "a token": (WEIGHTS, IDS[:1, :1])},
    notice="The second table gives all texts the same rows: each starts at position 0.",
    mistakes=[
        Mistake(
            lambda weights, ids: weights["tok_emb.weight"][ids],
            "This says what the tokens are. What tells the model where they stand?",
            "section 4.1",
        ),
        Mistake(
            lambda w, ids: w["tok_emb.weight"][ids] + w["pos_emb.weight"][ids],
            "You look up the positions with token ids. Where does a token stand?",
            "our own trial",
        ),
        Mistake(
            lambda w, ids: embedded(w | {PLACES: w[PLACES].roll(-1, 0)}, ids),
            "You begin at position 1. From which number do positions count?",
            "a learner's trial of ours",
        ),
    ],
)
ONE_BLOCK = Exercise(
    "4.9b",
    "GPT-2 from its weights: a block",
    torch_block,
    cases={
        "block 0, 2 heads": (WEIGHTS, 0, STREAM, 2),
        "block 1, 4 heads": (WEIGHTS, 1, STREAM, 4),
    },
    notice="PyTorch's own block gives the same numbers.",
    mistakes=[
        Mistake(
            block_with("no mask"),
            "Tokens see what comes after them: the causal mask is missing.",
            "PyTorch's default, is_causal=False",
        ),
        Mistake(
            block_with(form="none"),
            "Very nearly. GPT-2 was trained with the other form of GELU.",
            "mlpack pull request 3994: small errors that pile up",
        ),
        *(
            Mistake(
                block_with(slip),
                "The shapes fit, but your heads are cut from the wrong numbers: a "
                "reshape alone mixes up tokens and heads. Which axis must be split "
                "first?",
                "our own trial",
            )
            for slip in ("not split, not joined", "not split")
        ),
        Mistake(
            block_with("not joined"),
            "You split the heads well, but put them together otherwise. Which two axes "
            "have to change places before they are joined?",
            "our own trial",
        ),
        Mistake(
            lambda weights, n, *more: torch_block(weights, 0, *more),
            "Block 0 is right. Then comes block 1, and you take block 0 again.",
            "our own trial",
        ),
        Mistake(
            block_with("not projected"),
            "One matrix has not been used: the one after the heads are joined.",
            "our own trial",
        ),
        Mistake(
            block_with("no first shortcut"),
            "After attention, x is not added.",
            "a learner's trial of ours",
        ),
        Mistake(
            block_with("no second shortcut"),
            "After the MLP, the stream is not added.",
            "a learner's trial of ours",
        ),
        Mistake(
            block_with("no norm2"),
            "With what does the MLP's branch begin?",
            "a learner's trial of ours",
        ),
        Mistake(
            block_with("no GELU"),
            "The MLP has two matrices. What stands between them?",
            "a learner's trial of ours",
        ),
        Mistake(
            block_with("no biases"),
            "All matrices are used. Linear layers have one more vector each.",
            "a learner's trial of ours",
        ),
        *(
            Mistake(
                block_with(slip),
                "The first token is right, so norms, MLP and shortcuts are, too. It "
                "hears only itself: look at the scores of the others. How many heads "
                "have scores of their own, and by which root are they divided?",
                "a learner's trial of ours",
            )
            for slip in ("one head", "no root", "root of D", "K heads")
        ),
    ],
)
WHOLE = Exercise(
    "4.9c",
    "GPT-2 from its weights: the whole model",
    scores_of,
    cases={"2 blocks": (WEIGHTS, IDS, 2), "11 blocks": (ELEVEN, IDS[:1], 4)},
    notice="Hand it the 124 million weights of the real one, and it runs those.",
    mistakes=[
        Mistake(
            partial(scores_of, norm=False),
            "What comes out of the last block goes through one more norm.",
            "section 4.5, at its end",
        ),
        Mistake(
            partial(scores_of, blocks=lambda n: range(2)),
            "It works for two blocks. Take their number from the weights.",
            "our own trial",
        ),
        Mistake(
            partial(scores_of, blocks=lambda n: range(n - 1)),
            "One block is missing, the last. Its number is not how many there are.",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(scores_of, blocks=lambda n: range(min(n, 10))),
            "Ten blocks of eleven: as text, '9' is more than '10'. Compare numbers.",
            "a learner's trial of ours",
        ),
    ],
)
WRITE = Exercise(
    "4.9d",
    "GPT-2 from its weights: it writes",
    written,
    cases={"2 texts, 4 more": (QUIET, IDS, 4, 2), "a text": (QUIET, IDS[:1], 1, 2)},
    notice="Score, choose, append, repeat. You have written GPT-2.",
    mistakes=[
        Mistake(
            partial(written, all_again=False),
            "Without a cache the whole text goes in again, not only the new token.",
            "section 4.8: the loop with and without a cache",
        ),
        Mistake(
            lambda weights, ids, *more: written(weights, ids, *more)[:, ids.shape[1] :],
            "The new tokens are right. Return the whole text, prompt first.",
            "our own trial",
        ),
    ],
)

check = Checks(
    *(LAYER_NORM, COUNT, ORDER, GELU, BLOCK, ROPE, GROUPED, BREAK_IT),
    *(EMBED, ONE_BLOCK, WHOLE, WRITE),
)
