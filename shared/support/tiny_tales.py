"""Tiny Tales: an endless corpus of children's stories, told by a small grammar that
knows how probable each story is, so that the lowest loss of any model on it is known.

`python -m shared.support.tiny_tales` prints the twenty stories that are kept in
ch05_pretraining/tiny_tales_sample.txt.

The rules stand in ch05_pretraining/tiny_tales.json: what the plots share, then plot by
plot its shapes (the orders in which it can be told), texts and settings. A rule is a
template, or a list of options that are equally probable. A template is a text with
names in braces: "{name} lost {his} {object}." An option is a template, or a record of
further rules with its own template under "text". What a name stands for is chosen once
in a story and remembered; {Object} is {object} with a capital. No two ways through the
rules lead to the same story: its probability is the product of those of the choices.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

from shared.support import COURSE, read_json

IN_BRACES = re.compile(r"\{(\w+)\}")


class Tale(NamedTuple):
    """A story and the natural logarithm of the probability that `tales` tells it."""

    text: str
    log_prob: float


class Grammar:
    """A grammar with memory; ValueError for a missing rule or one of another form.

    >>> rules = {"story": "A {pet} is a {pet}.", "pet": ["cat", "dog"]}
    >>> Grammar(rules).sample(lambda: 0.9)
    Tale(text='A dog is a dog.', log_prob=-0.6931471805599453)
    """

    def __init__(self, rules: Mapping[str, Any]):
        self.rules = dict(rules)
        defined = set()
        used = {"story"}
        for name, value in walk(self.rules):
            defined.add(name)
            if isinstance(value, str):
                used |= {n[0].lower() + n[1:] for n in IN_BRACES.findall(value)}
            elif not (isinstance(value, list) and value):
                raise ValueError(f"{name} must be a text or a list, got {value!r}")
        if not used <= defined:
            raise ValueError(f"no rule for {', '.join(sorted(used - defined))}")

    def sample(self, uniform: Callable[[], float]) -> Tale:
        """Tell one story, with a number from `uniform`, in [0, 1), for each choice."""
        bound = dict(self.rules)  # the rule of every name in this story
        told: dict[str, str] = {}  # the text of every name that is settled
        log_prob = 0.0

        def tell(name: str) -> str:
            nonlocal log_prob
            key = name[0].lower() + name[1:]  # {Name} is {name} with a capital
            if key not in told:
                option = bound[key]
                while isinstance(option, list):
                    log_prob -= math.log(len(option))
                    option = option[int(uniform() * len(option))]
                if isinstance(option, dict):
                    bound.update(option)
                    option = option.get("text", "")
                told[key] = IN_BRACES.sub(lambda match: tell(match[1]), option)
            text = told[key]
            return text if key == name else text[:1].upper() + text[1:]

        return Tale(tell("story"), log_prob)


def walk(rules: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every name in `rules`, however deep, with each thing it may stand for."""
    for name, value in rules.items():
        yield name, value
        for option in value if isinstance(value, list) else []:
            yield from walk(option if isinstance(option, dict) else {name: option})


def read_grammar(path: str | Path) -> Grammar:
    """Read rules; FileNotFoundError without the file, ValueError if it is damaged."""
    rules = read_json(path)
    try:
        return Grammar(rules)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


GRAMMAR = read_grammar(COURSE / "ch05_pretraining" / "tiny_tales.json")
RULES = GRAMMAR.rules
WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
NAMES = dict.fromkeys(RULES["girl"], "she") | dict.fromkeys(RULES["boy"], "he")


def tales(seed: int, n: int | None = None) -> Iterator[Tale]:
    """Stream `n` stories, or without end, the same for a seed on every machine;
    ValueError for a negative `n` or `seed`.
    """
    if seed < 0:  # Random(-1) equals Random(1)
        raise ValueError(f"seed must be at least 0, got {seed}")
    uniform = random.Random(seed).random  # Python promises to keep its numbers
    return islice((GRAMMAR.sample(uniform) for _ in repeat(None)), n)


if __name__ == "__main__":
    print("\n\n".join(tale.text for tale in tales(seed=2026, n=20)))
