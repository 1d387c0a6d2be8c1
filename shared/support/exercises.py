"""Exercises that answer: they run what you wrote, and tell which mistake it was.

    python -m shared.support.exercises                what is solved, what comes next
    python -m shared.support.exercises MY.ipynb       the same of your own copies

The exercises of a chapter stand in `chNN_exercises.ipynb`, what they are checked with
in `chNN_checks.py` beside it. An exercise has an answer that is right (a library's
where there is one), cases with names, and usual mistakes, each as *code that makes it*:
an answer that does in every case what this code does gets its hint.

In the notebook, `# Exercise 3.1` begins a stub's cell, the next one is
`check("3.1", name)`, and a fold with the summary `Solution 3.1` holds a block of
Python. The steps of a project are 3.9a, 3.9b, ... What runs whole notebooks is in
`.site/teaching.py`.
"""

import copy
import html
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from traceback import extract_tb
from typing import Any, NamedTuple

import torch

from shared.support import COURSE

STATES = {"right": "✓ #009E73 right", "open": "○ #777777 not solved yet"}
WRONG = "✗ #D55E00 not right yet"
OWN = re.compile(r"<(cell|ipython)|.*ipykernel")  # where a learner's code lies
KINDS = TENSOR, DICT, LIST, NUMBER = torch.Tensor, dict, list | tuple, int | float
CHANGED = "The result is right, but your function changes its input. `x += 1`, "
CHANGED += "`x[0] = 1` and `x.add_(1)` write into x; `x = x + 1` makes a new tensor."
CUT = "The values are right, the gradients are not: autograd loses sight of a number "
CUT += "at `.item()`, `.numpy()`, `.detach()`, `.data` and `torch.tensor`."
TESTED = {"accepted": "It lets a bad one pass.", "refused": "It refuses a good one."}
WORDS = {int: "a number", float: "a number", list: "a list such as [2, 3]"}
WORDS |= {tuple: "a tuple such as (2, 3)", TENSOR: "a tensor", type(None): "None"}


class Mistake(NamedTuple):
    """A usual wrong answer, as code or value; what to say; where it was seen."""

    answer: Any
    hint: str
    seen: str


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    """Return random numbers for a case, always the same."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bits(text: str) -> torch.Tensor:
    """Return a table of truth values, a row for each word of zeros and ones."""
    return torch.tensor([[bit == "1" for bit in row] for row in text.split()])


def refuses(test: Callable, *arguments: Any) -> str:
    """Judge a test that the learner wrote: by whether an assert in it fails."""
    with suppress(AssertionError):
        test(*arguments)
        return "accepted"
    return "refused"


class Exercise(NamedTuple):
    """What an answer is compared with, in which cases, and which mistakes are known.

    `answer` is a right function, class or value. `cases` maps what a case is called to
    the arguments; what is compared is `judge(answer, *arguments)`. `faulty` is what the
    stub of a "mend it" does. `notice` is said when all is right.
    """

    number: str
    title: str
    answer: Any
    mistakes: Sequence[Mistake]
    notice: str
    cases: dict[str, tuple] = {}
    judge: Callable = lambda answer, *arguments: answer(*arguments)
    differentiable: bool = False
    faulty: Any = None
    rtol: float = 1e-4

    def check(self, answer: Any) -> "Verdict":
        """Compare an answer with the right one, and find out what went wrong."""
        if is_open(answer):
            return Verdict(self, "open", "There is still a `...`, or a None, in it.")
        if callable(answer) != callable(self.answer):
            hint = f"It should {'not ' * callable(answer)}be a function or a class."
            return Verdict(self, "wrong", hint)
        given, changed = self.outcomes(answer)
        expected, may_change = self.outcomes(self.answer)
        if isinstance(given[0], NotImplementedError):
            return Verdict(self, "open")
        if self.faulty and self.alike(given, self.faulty):
            return Verdict(self, "open", "In every case it still does what it did.")
        for case, wanted, got in zip(self.cases or [""], expected, given, strict=True):
            if hint := difference(wanted, got, self.rtol):
                known = [m.hint for m in self.mistakes if self.alike(given, m.answer)]
                state = "error" if isinstance(got, Exception) and not known else "wrong"
                return Verdict(self, state, [*known, hint][0], case, wanted, got)
        if changed and not may_change:
            return Verdict(self, "wrong", CHANGED)
        if self.differentiable and difference(*map(self.slopes, (self.answer, answer))):
            return Verdict(self, "wrong", CUT)
        return Verdict(self, "right", self.notice)

    def outcomes(self, answer: Any) -> tuple[list, bool]:
        """Return what comes out in every case (errors too); and: do inputs change?"""
        if not callable(answer):
            return [answer], False
        results, changed = [], ""
        for before in self.cases.values():
            after = copy.deepcopy(before)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                try:
                    results.append(self.judge(answer, *after))
                except Exception as error:  # also an answer
                    results.append(error)
            for pair in zip(before, after, strict=True):
                changed += difference(*pair) if isinstance(pair[0], KINDS) else ""
        return results, bool(changed)

    def alike(self, given: list, mistake: Any) -> bool:
        """Tell whether outcomes are those of a known mistake, in every case.

        Of a dict only the entries count that the mistake gets wrong: others may be
        wrong, too. So a mistake in several entries stands before one in some of these.
        """
        if isinstance(mistake, dict) and isinstance(given[0], dict):
            slips = {k: v for k, v in mistake.items() if difference(self.answer[k], v)}
            return not difference(given[0] | slips, given[0])
        known, _ = self.outcomes(mistake)
        if all(isinstance(outcome, Exception) for outcome in known):
            return list(map(str, given)) == list(map(str, known))
        return not difference(known, given, self.rtol)

    def slopes(self, answer: Callable) -> Any:
        """Return the list of gradients that flow back to the first case's inputs."""
        inputs = copy.deepcopy(next(iter(self.cases.values())))
        held = filter(torch.is_tensor, inputs)
        leaves = [a.requires_grad_(a.is_floating_point()) for a in held]
        with suppress(Exception):  # where gradients are recorded, `.numpy()` fails
            out = torch.as_tensor(self.judge(answer, *inputs)).nan_to_num()
            out.backward(torch.arange(1.0, out.numel() + 1).view(out.shape))
        return [a.grad for a in leaves if a.grad is not None]


def is_open(answer: Any) -> bool:
    """Tell whether dots, or None, still stand for an answer or a part of one."""
    v = [*answer.values()] if isinstance(answer, DICT) else answer
    return any(map(is_open, v)) if isinstance(v, LIST) else v is ... or v is None


def difference(expected: Any, given: Any, rtol: float = 1e-4) -> str:
    """Say in a sentence how two outcomes differ; "" if they do not.

    Numbers agree up to rounding if the expected one is not whole; a tensor of one
    number with the number; a list with a tuple; exceptions with those of their kind.
    """
    if isinstance(expected, Exception):
        right = isinstance(given, type(expected))
        return "" if right else f"A {type(expected).__name__} should be raised here."
    if isinstance(given, Exception) or given is None is not expected:
        return raised(given or TypeError(None))
    pair: Any = (expected, given)
    ones: Any = [v.item() if torch.is_tensor(v) and v.ndim == 0 else v for v in pair]
    a, b = pair = pair if any(map(torch.is_tensor, ones)) else ones
    kinds = [next((k for k in KINDS if isinstance(v, k)), type(v)) for v in pair]
    if kinds[0] != kinds[1]:
        a, b = (WORDS.get(type(v), f"a {type(v).__name__}") for v in pair)
        return f"It should be {a}; yours is {b.partition(' such')[0]}."
    if kinds[0] is TENSOR:
        if a.shape != b.shape:
            return f"The shape should be {tuple(a.shape)}; yours is {tuple(b.shape)}."
        if count := int(apart(a, b, rtol).sum()):
            return f"Wrong numbers: {count} of {a.numel()}."
        c, d = ((t.is_floating_point(), t.dtype == torch.bool) for t in pair)
        return "" if c == d else f"The dtype should be {a.dtype}; yours is {b.dtype}."
    if kinds[0] == NUMBER:
        close = isinstance(a, float) and abs(a - b) < max(1e-6, rtol * abs(a))
        size = "nan" if b != b else "too large" if b > a else "too small"
        wrong = f"It should be {a}." if a is True or a is False else f"It is {size}."
        return "" if a == b or close or str(a) == str(b) else wrong
    if kinds[0] not in (DICT, LIST):
        return "" if a == b else TESTED.get(str(b), "Something else is wanted here.")
    if kinds[0] == LIST and len(a) != len(b):
        return f"The length should be {len(a)}; yours is {len(b)}."
    a, b = (dict(enumerate(v)) if kinds[0] == LIST else v for v in pair)
    if a.keys() != b.keys():
        return f"The keys should be {[*a]}; yours are {[*b]}."
    found = [f"Entry `[{k!r}]`: {u}" for k in a if (u := difference(a[k], b[k], rtol))]
    return [*found, ""][0].replace("`: Entry `", "")


def apart(a: torch.Tensor, b: torch.Tensor, rtol: float) -> torch.Tensor:
    """Return where two tensors of one shape differ by more than rounding."""
    a, b = (t.detach().cpu().double() for t in (a, b))
    return ~torch.isclose(a, b, rtol=rtol, atol=1e-5, equal_nan=True)


def raised(error: Exception) -> str:
    """Say what was raised, and in which line of the learner's cell; or that None came.

    Where no such line has failed, but a check could not go on with a None, this None
    has come out of the learner's code.
    """
    lines = [f.line for f in extract_tb(error.__traceback__) if OWN.match(f.filename)]
    if not lines and "None" in str(error):
        return "None comes back: is a `return` missing?"
    place = f"\nin your line: `{lines[-1]}`" if ["", *lines][-1] else ""
    return f"Your code raised {type(error).__name__}: {error}".rstrip(": ") + place


class Verdict(NamedTuple):
    """What a check has found: text and HTML that say the same; true if right."""

    exercise: Exercise
    state: str
    hint: str = ""
    case: str = ""  # a value has none: what is expected would give it away
    expected: Any = None
    given: Any = None

    def __bool__(self) -> bool:
        return self.state == "right"

    @property
    def headline(self) -> str:
        """Return mark, number, title and state in a line."""
        mark, _, words = STATES.get(self.state, WRONG).split(maxsplit=2)
        return f"{mark} Exercise {self.exercise.number}, {self.exercise.title}: {words}"

    def tables(self) -> str:
        """Return what was expected and what came, as text; ≠ stands at what differs.

        Of what is too long for a line, only the first entry that differs is shown.
        """
        pair, rtol = (self.expected, self.given), self.exercise.rtol
        entry = re.match(r"Entry `(.*?)`", difference(*pair, rtol))
        at = entry[1] if entry and len(str(pair)) > 320 else ""
        a, b = (eval(f"value{at}", {"value": value}) for value in pair)
        if not (torch.is_tensor(a) and torch.is_tensor(b) and a.shape == b.shape):
            texts = [" ".join(repr(value).split())[:160] for value in (a, b)]
            return f"expected{at}: {texts[0]}\nyours{at}:    {texts[1]}"
        shape = (-1, *a.shape[-2:]) if a.ndim > 1 else (1, 1, -1)
        a, b, wrong = (t.reshape(shape) for t in (a, b, apart(a, b, rtol)))
        n, *place = [*wrong.nonzero().tolist(), [0, 0, 0]][0]  # the first one
        part = (n, *(slice(max(0, i - 2), max(0, i - 2) + 6) for i in place))
        text = ""
        for name, t in {"expected": a, "yours": b}.items():
            text += f"{name}{at}:\n"
            for row in zip(t[part].tolist(), wrong[part].tolist(), strict=True):
                cells = [f"{v:.4g}{'≠' * mark}" for v, mark in zip(*row, strict=True)]
                text += "  ".join(f"{cell:>8}" for cell in cells) + "\n"
        return text.rstrip()

    def __repr__(self) -> str:
        case = f"In the case: {self.case}\n{self.tables()}" if self.case else ""
        return "\n".join(filter(None, [self.headline, self.hint, case]))

    def _repr_html_(self) -> str:
        head, *rest = html.escape(repr(self)).split("\n")
        text = re.sub(r"`([^`]*)`", r"<code>\1</code>", "\n".join(rest))
        text, case, end = text.partition("In the case: ")
        end = re.sub(r"\S+≠", r'<b style="outline: thin solid #D55E00">\g<0></b>', end)
        body = f"<strong>{head}</strong><div>{text}</div>".replace("\n", "<br>")
        body += f'<pre style="font-family: monospace">{case}{end}</pre>' * bool(case)
        edge = f"5px solid {STATES.get(self.state, WRONG)[2:9]}; padding: 0.3em 0.8em"
        return f'<div role="status" style="border-left: {edge}">{body}</div>'


class Checks:
    """The exercises of a chapter, and how the last check of each came out.

    `check("3.1", my_function)` checks; `check.progress()` shows how far you are.
    """

    def __init__(self, *exercises: Exercise) -> None:
        self.exercises = {exercise.number: exercise for exercise in exercises}
        self.verdicts = {n: Verdict(e, "open") for n, e in self.exercises.items()}

    def __call__(self, number: str, answer: Any) -> Verdict:
        if number not in self.exercises:
            raise ValueError(f"{number} is none of {', '.join(self.exercises)}")
        self.verdicts[number] = self.exercises[number].check(answer)
        return self.verdicts[number]

    def progress(self) -> None:
        """Print a square for every check, filled if it is solved, and what is open."""
        print(squares({n: v.state for n, v in self.verdicts.items()}))
        print(*(v.headline for v in self.verdicts.values() if not v), sep="\n")


def squares(states: dict[str, str]) -> str:
    """Return a chapter's line: its name, a square for every check, how many hold."""
    marks = "".join("■" if state == "right" else "□" for state in states.values())
    chapter = next(iter(states)).partition(".")[0]
    return f"Chapter {chapter}: {marks} {marks.count('■')} of {len(marks)} solved"


if __name__ == "__main__":
    runpy.run_path(str(COURSE / ".site" / "teaching.py"))["overview"](sys.argv[1:])
