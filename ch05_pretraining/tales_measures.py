"""What is known about Tiny Tales: the lowest loss of any model, and how like a tale a
text is.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from shared.support.tiny_tales import IN_BRACES, NAMES, RULES, WORD, tales, walk

PRONOUNS = dict.fromkeys(["she", "her", "herself"], "she")
PRONOUNS |= dict.fromkeys(["he", "his", "him", "himself"], "he")
TEMPLATES = " ".join(value for _, value in walk(RULES) if isinstance(value, str))
KNOWN_WORDS = frozenset(WORD.findall(IN_BRACES.sub(" ", TEMPLATES).lower()))


class EntropyFloor(NamedTuple):
    """The lowest mean loss a model can reach on Tiny Tales, with standard errors."""

    nats_per_token: float
    nats_per_token_error: float
    nats_per_story: float
    nats_per_story_error: float


def entropy_floor(tokenizer: Any, n: int = 2000, seed: int = 1_000_003) -> EntropyFloor:
    """Measure the entropy of Tiny Tales on `n` stories: sum of -log p over all tokens.

    Tokens are what `tokenizer.encode_ordinary(text)` gives, and one for the end of each
    story. A standard error needs an `n` of at least 2.
    """
    sample = list(tales(seed, n))
    nats = [-tale.log_prob for tale in sample]
    tokens = [len(tokenizer.encode_ordinary(tale.text)) + 1 for tale in sample]
    return EntropyFloor(*ratio(nats, tokens), *ratio(nats, [1] * n))


def ratio(tops: Sequence[float], bottoms: Sequence[float]) -> tuple[float, float]:
    """Return sum(tops) / sum(bottoms) and its standard error by the delta method."""
    n = len(tops)
    quotient = sum(tops) / sum(bottoms)
    spread = sum((a - quotient * b) ** 2 for a, b in zip(tops, bottoms, strict=True))
    return quotient, math.sqrt(spread * n / (n - 1)) / sum(bottoms)


class Quality(NamedTuple):
    """Three shares between 0 and 1 that say how much a text is like a tale."""

    words: float
    pronouns: float
    colours: float


def quality(texts: Iterable[str]) -> Quality:
    """Measure texts; the grammar's own stories have 1.0 three times.

    words: the share of words that exist in the grammar. pronouns: of texts in which he,
    she, his, her, ... all agree with the first name (without a name a text fails, with
    a name and no pronoun it is not counted). colours: of texts with one and the same
    colour, among those that mention two or more. A share of nothing is 0.
    """
    known: list[bool] = []
    pronouns: list[bool] = []
    colours: list[bool] = []
    for text in texts:
        words = WORD.findall(text.lower())
        known += [word in KNOWN_WORDS for word in words]
        first = next((NAMES[w] for w in WORD.findall(text) if w in NAMES), None)
        used = {PRONOUNS[word] for word in words if word in PRONOUNS}
        if first is None or used:
            pronouns.append(used == {first})
        mentioned = [word for word in words if word in RULES["colour"]]
        if len(mentioned) >= 2:
            colours.append(len(set(mentioned)) == 1)
    return Quality(*(sum(h) / max(len(h), 1) for h in (known, pronouns, colours)))
