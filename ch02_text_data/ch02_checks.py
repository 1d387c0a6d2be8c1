"""What the exercises of chapter 2 are checked with.

It gives the solutions away: try first.
"""

import math
import re
from collections import Counter
from functools import partial
from itertools import pairwise, product
from types import SimpleNamespace

import regex
import tiktoken
import torch
import torch.nn.functional as F
from tiktoken._educational import bpe_train

from shared.support.exercises import Checks, Exercise, Mistake, refuses

BYTES = [bytes([byte]) for byte in range(256)]


def rust(merges, special=None):
    """Return tiktoken's tokenizer of these merges, for one pre-token."""
    tokens = BYTES + [left + right for left, right in merges]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    rules: dict = {"mergeable_ranks": ranks, "special_tokens": special or {}}
    return tiktoken.Encoding("x", pat_str=r"(?s).+", **rules)


# --- 2.1 to 2.3: merges --------------------------------------------------------------

EXERCISE_1 = Exercise(
    "2.1",
    "the first three merges",
    ["en", "ten", "ten_"],
    mistakes=[
        Mistake(
            ["en", "te", "n_"],
            "The three most frequent pairs at the start. But once e + n is one token, "
            "which pairs are left?",
            "minbpe issue 93",
        ),
        Mistake(
            ["en", "ten", "tent"],
            "Two are right. Then there are ten + t and ten + _: the underscore counts "
            "as a letter. Which of the two is more frequent?",
            "words without their end",
        ),
        *(
            Mistake(
                ["te", *rest.split()],
                "Count once more: te stands in `ten` and `tent`. In which words does "
                "en stand?",
                "a trial of this exercise",
            )
            for rest in ("ten ten_", "en n_", "en ten", "ten tent")
        ),
        Mistake(
            ["en", "ten", "n_"],
            "Two are right. The underscore did follow n five times, but by now n "
            "stands inside longer tokens: what stands before _ now?",
            "a learner's trial of ours",
        ),
        Mistake(
            ["en", "ten", "en_"],
            "Two are right. The underscore did follow en five times, but by now nearly "
            "all of these en are inside ten.",
            "a trial of this exercise",
        ),
        Mistake(
            ["en", "en_", "ten_"],
            "The first is right. Which is more frequent after it, t + en or en + _? "
            "One of them stands in `tent`, too.",
            "a trial of this exercise",
        ),
        Mistake(
            ["en", "n_", "te"],
            "The three most frequent pairs at the start. But once e + n is one token, "
            "which pairs are left?",
            "a trial of this exercise",
        ),
        Mistake(
            ["e n", "t en", "ten _"],
            "The merges are right. Write each token as it is once it is glued, without "
            "a space.",
            "a trial of this exercise",
        ),
    ],
    notice="Merge 3 made a whole word: what is frequent soon is one token.",
)


def bytes_replace(ids, pair, new_id):
    """Return what Python's own bytes.replace makes of ids below 256."""
    return list(bytes(ids).replace(bytes(pair), bytes([new_id])))


def merge_with(ids, pair, new_id, fault=""):
    """Return a merge with a known fault."""
    out, i = [], 0
    while i < len(ids) - ("end" in fault):
        hit = tuple(ids[i : i + 2]) == tuple(pair)
        out.append(new_id if hit else ids[i])
        i += 1 + (hit and "no skip" not in fault)
    return out


EXERCISE_2 = Exercise(
    "2.2",
    "merge a pair",
    bytes_replace,
    cases={
        "twice, and in the other order": ([5, 6, 7, 6, 5, 5, 6], (5, 6), 99),
        "[15, 6, 5, 6], pair (5, 6)": ([15, 6, 5, 6], (5, 6), 99),
        "two equal ids": ([1, 1, 1, 1, 1], (1, 1), 50),
        "nothing to glue": ([3, 2, 1], (1, 2), 9),
        "one id": ([4], (4, 4), 9),
        "no ids": ([], (4, 4), 9),
    },
    mistakes=[
        Mistake(
            partial(merge_with, fault="no skip"),
            "The right half is still there after the new id. How far must you go on "
            "when you have glued two?",
            "minbpe issue 51: overlapping pairs",
        ),
        Mistake(
            partial(merge_with, fault="end"),
            "The last id is lost when it belongs to no pair. Where does your loop end?",
            "range(len(ids) - 1)",
        ),
        Mistake(
            partial(merge_with, fault="no skip, end"),
            "The right half is still there after the new id, and an id at the end is "
            "lost. How far must you go on when you have glued two, and where does your "
            "loop end?",
            "a trial of this exercise",
        ),
    ],
    notice="Of five equal ids, four are glued, from the left, and one is left over.",
)

LEARNED = [
    tuple(map(str.encode, pair.split("+")))
    for pair in "h+e t+he i+n e+r in+g l+o lo+c loc+k o+u t+h s+t st+er t+o r+n".split()
]
DOVE = [(b"\xf0", b"\x9f"), (b"\x95", b"\x8a")]


def rust_tokens(word, merges):
    """Return the tokens that tiktoken finds."""
    return rust(merges).decode_tokens_bytes(rust(merges).encode(word.decode()))


def glue(parts, pair):
    """Return parts with every pair of these neighbours glued."""
    out: list = []
    for part in parts:
        hit = out and (out[-1], part) == pair
        out[-1:] = [out[-1] + part] if hit else [*out[-1:], part]
    return out


def encode_with(word, merges, pick):
    """Glue the pair that `pick` chooses until it chooses none."""
    parts = [bytes([byte]) for byte in word]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while found := [pair for pair in pairwise(parts) if pair in ranks]:
        parts = glue(parts, pick(found, key=ranks.get))
    return parts


def longest_first(word, merges):
    """Cut off the longest known token, again and again."""
    parts: list = []
    known = {left + right for left, right in merges}
    while word:
        sizes = range(len(word), 0, -1)
        size = next(n for n in sizes if word[:n] in known or n == 1)
        parts, word = [*parts, word[:size]], word[size:]
    return parts


EXERCISE_3 = Exercise(
    "2.3",
    "encode with given merges",
    rust_tokens,
    cases={
        "the": (b"the", LEARNED),
        "locking the other": (b"locking the other", LEARNED),
        "torn": (b"torn", LEARNED[::-1]),
        "touch": (b"touch", LEARNED),
        "stern": (b"stern", LEARNED),
        "nothing to glue": (b"zzz", LEARNED),
        "a dove": ("🕊".encode(), DOVE),
    },
    mistakes=[
        Mistake(
            longest_first,
            "You take the longest token that fits. In training the pieces were glued "
            "one pair at a time: in `touch`, which pair was learned first?",
            "section 2.10; github/rust-gems pull 9",
        ),
        Mistake(
            partial(encode_with, pick=lambda found, key: found[0]),
            "You glue the leftmost known pair. In `the`, both t + h and h + e are "
            "known: which was learned earlier?",
            "LLMs-from-scratch issue 558",
        ),
        Mistake(
            lambda word, merges: [*word],
            "Going through `bytes` gives numbers, and no pair of numbers is among the "
            "merges. How do you get pieces of one byte?",
            "list(b'the'), python questions",
        ),
    ],
    notice="At worst nothing is glued, but no byte is ever unknown.",
)

# --- 2.4 and 2.5: bytes and texts ----------------------------------------------------

VOCAB = dict(enumerate([*BYTES, b"\xf0\x9f", b"\x95\x8a", b"do"]))


def decode_whole(ids, vocab):
    """Return tiktoken's decoding."""
    return rust([*DOVE, (b"d", b"o")]).decode(ids)


def decode_each(ids, vocab, errors="replace", encoding="utf-8"):
    """Decode every token on its own."""
    return "".join(vocab[i].decode(encoding, errors=errors) for i in ids)


def decode_joined(ids, vocab, errors="strict"):
    """Join the bytes, and fail where they are no text, or leave these out."""
    return b"".join(vocab[i] for i in ids).decode(errors=errors)


EXERCISE_4 = Exercise(
    "2.4",
    "mend it: the dove that comes back as �",
    decode_whole,
    faulty=decode_each,
    cases={
        "a dove": ([258, 118, 101, 32, 256, 257], VOCAB),
        "café": ([*"café".encode()], VOCAB),
        "the first half of a dove": ([258, 118, 101, 256], VOCAB),
    },
    mistakes=[
        Mistake(
            partial(decode_each, errors="ignore"),
            "No � any more, but no dove either. Its bytes are all there, in two "
            "tokens: when can they be read as text?",
            "replicate/cog-llama-template pull 75",
        ),
        Mistake(
            partial(decode_each, encoding="latin-1"),
            "Latin-1 has a character for every byte, but the wrong one. How was the "
            "text written?",
            "latin-1 as a cure, stackoverflow",
        ),
        Mistake(
            decode_joined,
            "The dove flies. But a model's text may end inside a character: what did "
            "the old version do with bytes that are no text?",
            "tiktoken_ruby pull 123",
        ),
        Mistake(
            partial(decode_joined, errors="ignore"),
            "The dove flies. But half a dove now vanishes without a trace. What should "
            "stand there, so that one sees that something was broken?",
            "a trial of this exercise",
        ),
    ],
    notice="A program that shows a text while it is being written must hold back half "
    "a dove until the other half comes.",
)


SPECIAL = {"<|endoftext|>": 256, "<|user|>": 257}
PLAIN = rust([], SPECIAL)
MERGED = rust([(b"t", b"h"), (b" ", b" "), *DOVE], {"<|endoftext|>": 260})


def ordinary(text):
    """Return the bytes of a text."""
    return list(text.encode())


def in_pairs(text):
    """Return the bytes of a text, two by two."""
    return [int.from_bytes(text.encode()[n : n + 2]) for n in range(0, len(text), 2)]


def tokenizer(encode=ordinary, decode=lambda ids: PLAIN.decode(ids), eot_token=256):
    """Return a tokenizer over bytes, or another one."""
    return SimpleNamespace(encode=encode, decode=decode, eot_token=eot_token)


merged = tokenizer(lambda t: MERGED.encode_ordinary(t), lambda i: MERGED.decode(i), 260)
by_bytes = tokenizer(decode=lambda ids: decode_each(ids, VOCAB))
open_door = tokenizer(lambda text: PLAIN.encode(text, allowed_special="all"))


def refuse(tokenizer, texts=("Ivy, a  DOVE\n 🕊", "a<|endoftext|>b"), wanted=False):
    """Assert that some texts come back and that no user writes the special token."""
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert (tokenizer.eot_token in ids) == wanted


def refuse_all(tokenizer):
    """Wait for an error that does not come."""
    raise AssertionError


EXERCISE_5 = Exercise(
    "2.5",
    "break it: a test for tokenizers",
    refuse,
    judge=refuses,
    cases={
        "a good one: bytes": (tokenizer(),),
        "a good one, with merges": (merged,),
        "one that writes small letters": (tokenizer(lambda t: ordinary(t.lower())),),
        "one that eats spaces": (tokenizer(lambda t: ordinary(" ".join(t.split()))),),
        "one that reads byte by byte": (by_bytes,),
        "one that lets users end the text": (open_door,),
    },
    mistakes=[
        Mistake(
            partial(refuse, texts=("the clock stopped",)),
            "All four get through. Does an `assert` stand there, and what could come "
            "back changed: which letters, which spaces, which signs?",
            "LLMs-from-scratch pull 1064",
        ),
        Mistake(
            partial(refuse, texts=("Ivy, a  DOVE\n 🕊",)),
            "Three of four. The last one gives every text back. What might a user type "
            "to end it?",
            "transformers issue 29279, tokenizers issue 1347",
        ),
        Mistake(
            partial(refuse, texts=("The clock stopped.",)),
            "One of four. A plain sentence has single spaces and one byte for each "
            "character. What else may a text hold, and what might a user type?",
            "a trial of this exercise",
        ),
        Mistake(
            partial(refuse, texts=("a<|endoftext|>b",)),
            "One of four. A tokenizer may also change a text: which letters, which "
            "spaces, which signs could come back as others?",
            "a trial of this exercise",
        ),
        Mistake(
            partial(refuse, texts=("Ivy, a DOVE 🕊", "a<|endoftext|>b")),
            "Three of four. All your texts have single spaces between their words. "
            "What else may stand between two words, or at the end?",
            "a trial of this exercise",
        ),
        Mistake(
            partial(refuse, texts=("Ivy, a  DOVE", "a<|endoftext|>b")),
            "Three of four. Every character of your texts is one byte. Which ones are "
            "several?",
            "a trial of this exercise",
        ),
        Mistake(
            partial(refuse, texts=("a  dove 🕊", "a<|endoftext|>b")),
            "Three of four. Your texts have small letters only.",
            "a trial of this exercise",
        ),
        Mistake(
            partial(refuse, texts=("a<|endoftext|>b",), wanted=True),
            "You ask for `eot_token` where a user has typed `<|endoftext|>`. May a "
            "user end the text, or is that what a good one prevents?",
            "a learner's trial of ours",
        ),
        Mistake(
            refuse_all,
            "You refuse the good ones, too. These raise no error when a user types "
            "`<|endoftext|>`: they read it as ordinary text. And which ids they write, "
            "and how many, is their own affair, as long as the text comes back and "
            "`eot_token` is not among them.",
            "section 2.4: tiktoken raises an error where nothing was decided",
        ),
    ],
    notice="Encode, decode, compare tests any tokenizer. But the text of a special "
    "token does come back, so that needs a test of its own.",
)

# --- 2.6 to 2.8: windows and positions -----------------------------------------------

EXERCISE_6 = Exercise(
    "2.6",
    "how many windows",
    len(torch.arange(1000).unfold(0, 16 + 1, 8)),
    mistakes=[
        Mistake(
            124,
            "One too many. The last input of a window needs a target, too. Does your "
            "last window have one?",
            "foundation-model-stack pull 49",
        ),
        Mistake(
            122,
            "One is missing. The starts are 0, 8, 16 …: how many are there up to 24?",
            "fence posts: a division without + 1",
        ),
        Mistake(
            125,
            "That is how often 8 fits into 1,000. How many tokens must still follow "
            "the last start?",
            "N / stride, sliding windows",
        ),
        Mistake(
            62,
            "That is how often 16 fits into 1,000. But a new window begins after 8 "
            "tokens already.",
            "a trial of this exercise",
        ),
        Mistake(
            (1000 - 16 - 1) / 8 + 1,
            "A number of windows is whole: `//`, not `/`. What becomes of the rest?",
            "a learner's trial of ours",
        ),
        Mistake(
            984,
            "A window at every start. With a stride of 8, how many of these starts are "
            "there?",
            "a trial of this exercise",
        ),
    ],
    notice="The last window begins at 976, and token 992 is its last target.",
)


def unfold(ids, T, stride, first=0):
    """Return torch's own windows, cut in two."""
    both = ids.unfold(0, T + 1, stride)
    return both[:, :-1], both[:, 1:] if not first else both[:, -1]


def sliding(ids, T, stride, by=1, end=0):
    """Return what a plain loop gives, with a known fault."""
    starts = range(0, len(ids) - T - end, stride)
    x, y = ([ids[s + shift :][:T] for s in starts] for shift in (0, by))
    return torch.stack(x), torch.stack(y)


EXERCISE_7 = Exercise(
    "2.7",
    "targets shifted by one",
    unfold,
    cases={
        "ten tokens, T = 4, stride 4": (torch.arange(40, 50), 4, 4),
        "stride 1": (torch.tensor([3, 1, 4, 1, 5, 9, 2]), 3, 1),
        "the last window just fits": (torch.arange(9), 4, 4),
        "a stride that leaves some out": (torch.arange(12), 2, 4),
    },
    mistakes=[
        Mistake(
            partial(sliding, by=0),
            "Inputs and targets are the same: there is nothing to predict. What comes "
            "after a token?",
            "transformers issues 24910, 2033",
        ),
        Mistake(
            partial(unfold, first=-1),
            "One target a window. But every one of its T inputs has a token after it, "
            "too.",
            "chapter 1's three letters",
        ),
        Mistake(
            lambda ids, T, stride: sliding(ids, T, 1),
            "Each window begins one token later. What is `stride` for?",
            "rasbt/LLMs-from-scratch issue 23",
        ),
        Mistake(
            partial(sliding, end=-1),
            "Your last window lacks its last target. Up to which start are there T + 1 "
            "tokens?",
            "len(ids) - T + 1, sliding windows",
        ),
        Mistake(
            partial(sliding, end=1),
            "The last window is missing, although all its targets are there. Where "
            "does your range of starts end?",
            "len(ids) - T - 1, sliding windows",
        ),
        Mistake(
            lambda ids, T, stride: [x[:-1] for x in unfold(ids, T, stride)],
            "One window is missing in every case, the last. From the first start, so "
            "many steps of `stride` fit: how many starts are these?",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda ids, T, stride: sliding(ids, T, T),
            "Your windows lie side by side. By how much does `stride` say that the "
            "next one begins later?",
            "a trial of this exercise",
        ),
        Mistake(
            lambda ids, T, s: sliding(ids, T, s, by=T, end=T - 1),
            "Your targets are the window after the inputs. A target is the one token "
            "that comes next: how far are they shifted?",
            "a trial of this exercise",
        ),
        Mistake(
            lambda ids, T, s: [x := unfold(ids, T, s)[0], x.roll(-1, dims=1)],
            "The last target of each window has come round from its front. Where does "
            "the token after the window stand?",
            "torch.roll for a shift",
        ),
    ],
    notice="Targets are the inputs without the first, and one more at the end.",
)


def by_the_paper(n_positions, emb_dim, power=lambda c: c - c % 2, start=0, step=1):
    """Return the table of Vaswani et al. (2017), entry by entry, with math.sin."""
    columns = [*range(0, emb_dim, step), *[*range(1, emb_dim, step)] * (step - 1)]
    table = torch.empty(n_positions, emb_dim)
    for t, (n, c) in product(range(n_positions), enumerate(columns)):
        angle = (t + start) / 10_000 ** (power(c) / emb_dim)
        table[t, n] = math.cos(angle) if c % 2 else math.sin(angle)
    return table


EXERCISE_8 = Exercise(
    "2.8",
    "the sinusoidal table",
    by_the_paper,
    cases={
        "3 positions, D = 4": (3, 4),
        "50 positions, D = 8": (50, 8),
        "one position": (1, 6),
    },
    mistakes=[
        Mistake(
            partial(by_the_paper, power=lambda c: 2 * (c - c % 2)),
            "The hands slow down too fast. In 2i / D, i counts pairs. What is 2i for "
            "columns 0, 1, 2, 3?",
            "SamLynnEvans/Transformer issue 25",
        ),
        Mistake(
            partial(by_the_paper, power=lambda c: c),
            "The cosine turns at another speed than its sine. Both belong to one hand: "
            "which exponent do they share?",
            "SamLynnEvans/Transformer issue 7",
        ),
        Mistake(
            partial(by_the_paper, step=2),
            "All sines come first, then all cosines. In the paper they take turns.",
            "allenai/allennlp issue 2993",
        ),
        Mistake(
            partial(by_the_paper, power=lambda c: math.inf),
            "Your hands stand still. Python reads `10000 ** 2 * i / D` as (10000 ** "
            "2) * i / D: how far should the exponent reach?",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(by_the_paper, start=1),
            "Your positions begin with 1. What are sin 0 and cos 0?",
            "maxjcohen/transformer issue 62",
        ),
        Mistake(
            partial(by_the_paper, power=lambda c: 2 * c),
            "The hands slow down too fast. In 2i / D, i counts pairs. What is 2i for "
            "columns 0, 1, 2, 3?",
            "a trial of this exercise",
        ),
        Mistake(
            partial(by_the_paper, power=lambda c: c // 2),
            "The hands slow down too little. The exponent is 2i / D, and i counts "
            "pairs: what is 2i for columns 0, 1, 2, 3?",
            "a trial of this exercise",
        ),
        Mistake(
            lambda n, D: by_the_paper(n, D).view(n, -1, 2).flip(-1).flatten(1),
            "Each pair has its sine and cosine, but they have changed places. Which of "
            "them stands in the even columns?",
            "a trial of this exercise",
        ),
    ],
    notice="Column 0 is the fastest hand: sin 0, sin 1, sin 2 …",
)

# --- 2.9: the project ----------------------------------------------------------------

TOY = {b" there": 4, b" hen": 2, b" the": 6, b" her": 8, b"rock": 5}
MORE = {"é".encode(): 5, b"aaab": 4, b" a": 2}


def trained(counts, n):
    """Return the merges of tiktoken's own trainer, each read off its token."""
    n = min(n, sum(len(word) - 1 for word in counts))  # it stops at no end
    text = "".join(word.decode() * k for word, k in counts.items())
    pattern = "|".join(regex.escape(w.decode()) for w in sorted(counts, key=len)[::-1])
    merges: list = []
    for token in [*bpe_train(text, 256 + n, pattern, visualise=None)][256:]:
        merges.append(tuple(encode_with(token, merges, min)))
    return merges


def train_with(counts, n, fault="", tie=lambda pair: pair):
    """Return merges, with a known fault."""
    if fault == "across":
        counts = {b"".join(w * k for w, k in counts.items()): 1}
    pieces = [([bytes([b]) for b in w], k) for w, k in counts.items()]
    merges: list = []
    pairs: Counter = Counter()
    for _ in range(n):
        if fault != "once" or not pairs:
            pairs = Counter()
            for parts, k in pieces:
                for pair in pairwise(parts):
                    pairs[pair] += 1 if fault == "each" else k
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], tie(pair)))
        pieces = [(glue(parts, best), k) for parts, k in pieces]
        merges.append(best)
        del pairs[best]
    return merges


EXERCISE_9A = Exercise(
    "2.9a",
    "train",
    trained,
    cases={
        "five words, 5 merges": (TOY, 5),
        "é and aaab, 2 merges": (MORE, 2),
        "on 3 times, no twice, 9 merges": ({b"on": 3, b"no": 2}, 9),
    },
    mistakes=[
        Mistake(
            partial(train_with, fault="each"),
            "Each word is counted once. But ` her` stands there eight times, and so do "
            "its pairs.",
            "ClemenPine/a200 issue 7",
        ),
        Mistake(
            partial(train_with, fault="once"),
            "You take all merges from one count. After a merge there are new "
            "neighbours: when must you count?",
            "minbpe issue 93",
        ),
        Mistake(
            partial(train_with, fault="across"),
            "Pieces of two words were glued. How can the words be kept apart?",
            "section 2.3",
        ),
        Mistake(
            partial(train_with, fault="each", tie=lambda pair: 0),
            "Each word is counted once. But ` her` stands there eight times, and so do "
            "its pairs.",
            "ClemenPine/a200 issue 7",
        ),
        Mistake(
            partial(train_with, fault="once", tie=lambda pair: 0),
            "You take all merges from one count. After a merge there are new "
            "neighbours: when must you count?",
            "minbpe issue 93",
        ),
        Mistake(
            lambda counts, n: [a + b for a, b in train_with(counts, n)],
            "The tokens are right. Wanted are the pairs that they are made of: of "
            "`the`, its two parts.",
            "a trial of this exercise",
        ),
    ],
    notice="With GPT-2's pattern and 50,000 merges, this makes a vocabulary like "
    "GPT-2's.",
)


def rust_special(text, encode_ordinary, special_tokens, allowed):
    """Return tiktoken's ids, with its own rules; no text is cut if none is allowed."""
    if not allowed:
        return encode_ordinary(text)
    return PLAIN.encode(text, allowed_special=allowed, disallowed_special=())


def split_with(text, encode, special, allowed, pattern="({})", empty="$^"):
    """Return the ids where a text was cut by some pattern."""
    parts = re.split(pattern.format("|".join(map(re.escape, allowed)) or empty), text)
    return sum([[special[p]] if p in allowed else encode(p) for p in parts], [])


EXERCISE_9B = Exercise(
    "2.9b",
    "special tokens, where they are allowed",
    rust_special,
    cases={
        "two documents": ("one<|endoftext|> two", ordinary, SPECIAL, {"<|endoftext|>"}),
        "two in a row": ("<|user|><|endoftext|>", ordinary, SPECIAL, set(SPECIAL)),
        "one that is not allowed": ("a<|user|>b", ordinary, SPECIAL, {"<|endoftext|>"}),
        "nothing is allowed, two bytes an id": ("a<|user|>b", in_pairs, SPECIAL, set()),
        "no text": ("", ordinary, SPECIAL, {"<|user|>"}),
    },
    mistakes=[
        Mistake(
            lambda text, encode, *_: encode(text),
            "No special token is found. If you cut with a regular expression: `|` "
            "means `or` there, so `<|user|>` is `<`, `user` or `>`. How is such a sign "
            "escaped?",
            "| in a pattern, stackoverflow",
        ),
        Mistake(
            lambda text, encode, special, _: split_with(text, encode, special, special),
            "A token that was not allowed became one id. At which ones may you cut?",
            "transformers issue 29279, tokenizers issue 1347",
        ),
        Mistake(
            partial(split_with, pattern="{}"),
            "The special tokens are gone. What does `re.split` do with what it cuts "
            "at, and when does it keep it?",
            "re.split without a group",
        ),
        Mistake(
            partial(split_with, pattern="{}", empty=""),
            "The special tokens are gone. What does `re.split` do with what it cuts "
            "at, and when does it keep it?",
            "re.split without a group",
        ),
        Mistake(
            lambda text, encode, _, allowed: sum(
                map(encode, allowed and [text] or text), []
            ),
            "No special token is found. If you cut with a regular expression: `|` "
            "means `or` there, so `<|user|>` is `<`, `user` or `>`. How is such a sign "
            "escaped?",
            "| in a pattern, stackoverflow",
        ),
        Mistake(
            lambda text, encode, special, allowed: split_with(
                text, encode, special, allowed, "({})" if allowed else "(<.user.>)"
            ),
            "You cut at a token that is not allowed, and encode what stands around it "
            "apart. It is ordinary text: nothing is cut there.",
            "a trial of this exercise",
        ),
        Mistake(
            partial(split_with, empty=""),
            "If nothing is allowed, your pattern is empty, and an empty pattern cuts "
            "between all letters. Then a text is to be encoded as a whole.",
            "a trial of this exercise",
        ),
    ],
    notice="One text, two readings: what counts is who wrote it, you or your user.",
)


class Tables(torch.nn.Module):
    """A token's row plus its position's row, by torch's own embedding function."""

    def __init__(self, vocab_size, context_length, emb_dim):
        super().__init__()
        self.tok_emb = torch.nn.Embedding(vocab_size, emb_dim)
        self.pos_emb = torch.nn.Embedding(context_length, emb_dim)

    def positions(self, ids):
        """Return the vectors of the positions."""
        return F.embedding(torch.arange(ids.shape[1]), self.pos_emb.weight)

    def forward(self, ids):
        """Return the sum (B, T, D)."""
        return F.embedding(ids, self.tok_emb.weight) + self.positions(ids)


def tables(vectors):
    """Return the class with other vectors for the positions."""
    return type("Other", (Tables,), {"positions": vectors})


def filled(layer, sizes, ids):
    """Judge a layer by what it does with two known tables."""
    layer = layer(*sizes)
    for table, step in ((layer.tok_emb.weight, 1.0), (layer.pos_emb.weight, 0.01)):
        table.data.copy_(step * torch.arange(table.numel()).view(table.shape))
    return layer(ids)


EXERCISE_9C = Exercise(
    "2.9c",
    "the input of the model",
    Tables,
    judge=filled,
    cases={
        "2 texts of 3 tokens": ((9, 5, 4), torch.tensor([[8, 1, 1], [0, 4, 8]])),
        "as long as can be": ((7, 3, 2), torch.tensor([[2, 2, 0], [1, 6, 2]])),
        "one token": ((7, 3, 2), torch.tensor([[4]])),
        "more places than tokens": ((2, 4, 2), torch.tensor([[1, 0, 1, 1]])),
    },
    mistakes=[
        Mistake(
            tables(lambda self, ids: self.pos_emb(ids)),
            "You look up the positions with the token ids. With which numbers must the "
            "second table be asked?",
            "pytorch-seq2seq issues 69, 89",
        ),
        Mistake(
            tables(lambda self, ids: self.pos_emb.weight),
            "Fine for a text as long as the table. How many of its rows does a shorter "
            "one need?",
            "whole table added",
        ),
        Mistake(
            tables(lambda self, ids: self.pos_emb(torch.arange(len(ids)))[:, None]),
            "Your positions count the texts of the batch. Which axis of (B, T) are the "
            "places?",
            "x.size(0) for x.size(1)",
        ),
        Mistake(
            tables(lambda self, ids: 0),
            "Equal tokens get equal vectors wherever they stand. Where are the "
            "positions?",
            "section 2.7",
        ),
        Mistake(
            tables(lambda self, ids: self.pos_emb(torch.arange(len(ids)))),
            "Your positions count the texts of the batch. Which axis of (B, T) are the "
            "places?",
            "x.size(0) for x.size(1)",
        ),
        Mistake(
            tables(lambda self, ids: self.pos_emb(torch.arange(ids.shape[1]) + 1)),
            "Your positions begin with 1. Which row of the table does the first token "
            "get?",
            "a trial of this exercise",
        ),
        Mistake(
            lambda V, context_length, D: Tables(D, D, V),
            "An index is out of range: your tables have a row for each of the D "
            "numbers. What has a row of its own, and which number comes first in "
            "`Embedding`?",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda V, context_length, D: Tables(V, V, D),
            "The table of positions has as many rows as there are tokens in the "
            "vocabulary. How many places are there?",
            "a trial of this exercise",
        ),
    ],
    notice="This tensor is what chapter 3 receives.",
)

check = Checks(
    EXERCISE_1,
    EXERCISE_2,
    EXERCISE_3,
    EXERCISE_4,
    EXERCISE_5,
    EXERCISE_6,
    EXERCISE_7,
    EXERCISE_8,
    EXERCISE_9A,
    EXERCISE_9B,
    EXERCISE_9C,
)
