"""Exercises that answer: they run what you wrote, and tell which mistake it was.

    python -m shared.support.exercises                what is solved, what comes next
    python -m shared.support.exercises MY.ipynb       the same of your own copies

The exercises of a chapter stand in `chNN_exercises.ipynb`, what they are checked with
in `chNN_checks.py` beside it. An exercise has an answer that is right (a library's
where there is one), cases with names, and usual mistakes, each as *code that makes it*:
an answer that does in every case what this code does gets its hint.

In the notebook, `# Exercise 3.1` begins a stub's cell, the next one is
`check("3.1", name)`, and a fold with the summary `Solution 3.1` holds a block of
Python. The steps of a project are 3.9a, 3.9b, ...
"""

import argparse
import contextlib
import copy
import html
import io
import json
import linecache
import math
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from shared.support import COURSE, read_json

MARKS = {"right": "✓", "wrong": "✗", "error": "✗", "open": "○"}
COLORS = {"right": "#009E73", "wrong": "#D55E00", "error": "#D55E00", "open": "#777777"}
STUB = re.compile(r"# Exercise (\d+\.\d+[a-z]?)\n")
OWN_FILE = re.compile(r"<(cell|ipython)|.*ipykernel")  # where a learner's code lies
KINDS = (torch.Tensor, dict, list | tuple, int | float)  # what is compared alike
SECONDS = 120  # for one notebook
CHANGED = "The result is right, but your function changes its input. Work on a copy, "
CHANGED += "or use an operation without an underscore at its end."
CUT = "The values are right, but the gradients that flow back through them are not. "
CUT += "`.item()`, `.detach()`, `.data` and `torch.tensor(...)` cut the record."


# --- one exercise --------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    """A usual wrong answer, as code or value; what to say; where it was seen."""

    answer: Any
    hint: str
    seen: str


def call(answer: Callable, *arguments: Any) -> Any:
    """Judge a function: by what it returns."""
    return answer(*arguments)


def refuses(test: Callable, *arguments: Any) -> str:
    """Judge a test that the learner wrote: by whether an assert in it fails."""
    try:
        test(*arguments)
    except AssertionError:
        return "refused"
    return "accepted"


@dataclass(frozen=True)
class Exercise:
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
    cases: dict[str, tuple] = field(default_factory=dict)
    judge: Callable = call
    differentiable: bool = False
    faulty: Any = None
    rtol: float = 1e-4

    def check(self, answer: Any) -> "Verdict":
        """Compare an answer with the right one, and find out what went wrong."""
        if is_open(answer):
            return Verdict(self, "open")
        if callable(answer) != callable(self.answer):
            wanted = "function or class" if callable(self.answer) else "value"
            hint = f"A {wanted} is wanted; this is of type {type(answer).__name__}."
            return Verdict(self, "wrong", hint)
        given, changed = self.outcomes(answer)
        expected, may_change = self.outcomes(self.answer)
        untouched = self.faulty and self.alike(given, self.faulty)
        if untouched or isinstance(given[0], NotImplementedError):
            return Verdict(self, "open")
        for case, wanted, found in zip(
            self.cases or [""], expected, given, strict=True
        ):
            if hint := difference(wanted, found, self.rtol):
                state = "error" if isinstance(found, Exception) else "wrong"
                for mistake in self.mistakes:
                    if self.alike(given, mistake.answer):
                        state, hint = "wrong", mistake.hint
                return Verdict(self, state, hint, case, wanted, found)
        if changed and not may_change:
            return Verdict(self, "wrong", CHANGED)
        if self.differentiable and not self.same_slopes(answer):
            return Verdict(self, "wrong", CUT)
        return Verdict(self, "right", self.notice)

    def outcomes(self, answer: Any) -> tuple[list, bool]:
        """Return what comes out in every case (errors too); and: do inputs change?"""
        if not callable(answer):
            return [answer], False
        results: list[Any] = []
        changed = False
        for arguments in self.cases.values():
            given = copy.deepcopy(arguments)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                try:
                    results.append(self.judge(answer, *given))
                except Exception as error:  # also an answer
                    results.append(error)
            for before, after in zip(arguments, given, strict=True):
                if isinstance(before, KINDS):
                    changed = changed or bool(difference(before, after))
        return results, changed

    def alike(self, given: list, mistake: Any) -> bool:
        """Tell whether outcomes are those of a known mistake, in every case."""
        known, _ = self.outcomes(mistake)
        if all(isinstance(outcome, Exception) for outcome in known):
            return list(map(str, given)) == list(map(str, known))
        return not any(
            difference(*pair, self.rtol) for pair in zip(known, given, strict=True)
        )

    def same_slopes(self, answer: Callable) -> bool:
        """Tell whether gradients flow back to the inputs as from the right answer."""
        slopes = []
        for function in (answer, self.answer):
            inputs = copy.deepcopy(next(iter(self.cases.values())))
            leaves = [a for a in inputs if torch.is_tensor(a) and a.is_floating_point()]
            for tensor in leaves:
                tensor.requires_grad_()
            result = self.judge(function, *inputs)
            if not (torch.is_tensor(result) and result.requires_grad):
                return False
            weights = torch.arange(1.0, result.numel() + 1).view(result.shape)
            (result.nan_to_num() * weights).sum().backward()
            slopes.append(
                [a.new_zeros(1) if a.grad is None else a.grad for a in leaves]
            )
        return not difference(slopes[0], slopes[1])


def is_open(answer: Any) -> bool:
    """Tell whether dots, or None, still stand for an answer or a part of one."""
    parts = list(answer.values()) if isinstance(answer, dict) else answer
    if isinstance(parts, list | tuple):
        return any(map(is_open, parts))
    return answer is ... or answer is None


def difference(expected: Any, given: Any, rtol: float = 1e-4) -> str:
    """Say in a sentence how two outcomes differ; "" if they do not.

    Numbers agree up to rounding if the expected one is not whole; a tensor of one
    number with the number; a list with a tuple; exceptions with those of their kind.
    """
    if isinstance(expected, Exception) or isinstance(given, Exception):
        if isinstance(given, type(expected)):
            return ""
        wanted = f"{type(expected).__name__} should be raised here."
        return raised(given) if isinstance(given, Exception) else wanted
    if given is None and expected is not None:
        return "What comes back is None: is there a `return`?"
    pair = [
        v.item() if torch.is_tensor(v) and v.ndim == 0 else v for v in (expected, given)
    ]
    kinds = [next((k for k in KINDS if isinstance(v, k)), type(v)) for v in pair]
    if kinds[0] != kinds[1]:
        names = [type(v).__name__ for v in pair]
        return f"It is of type {names[1]}, and {names[0]} is wanted."
    expected, given = pair
    if torch.is_tensor(expected):
        if expected.shape != given.shape:
            shapes = f"{tuple(given.shape)}, and {tuple(expected.shape)}"
            return f"Its shape is {shapes} is wanted."
        if count := int(apart(expected, given, rtol).sum()):
            return f"{count} of its {expected.numel()} numbers are others."
        same = expected.is_floating_point() == given.is_floating_point()
        same = same and (expected.dtype == torch.bool) == (given.dtype == torch.bool)
        types = f"{given.dtype}, and {expected.dtype}"
        return "" if same else f"Its dtype is {types} is wanted."
    if kinds[0] == int | float:
        close = math.isclose(expected, given, rel_tol=rtol, abs_tol=1e-6)
        if expected == given or str(expected) == str(given):
            return ""
        if close and isinstance(expected, float):
            return ""
        return f"It is too {'large' if given > expected else 'small'}."
    if kinds[0] not in (dict, list | tuple):
        return "" if expected == given else "It is another one."
    if kinds[0] is not dict:
        expected, given = dict(enumerate(expected)), dict(enumerate(given))
    if expected.keys() != given.keys():
        return f"It has {len(given)} entries, {[*given]}; wanted are {[*expected]}."
    unlike = {key: difference(expected[key], given[key], rtol) for key in expected}
    return next((f"Entry `{key!r}`: {u}" for key, u in unlike.items() if u), "")


def apart(a: torch.Tensor, b: torch.Tensor, rtol: float) -> torch.Tensor:
    """Return where two tensors of one shape differ by more than rounding."""
    a, b = (t.detach().cpu().double() for t in (a, b))
    return ~torch.isclose(a, b, rtol=rtol, atol=1e-5, equal_nan=True)


def raised(error: Exception) -> str:
    """Say what was raised, and in which line of the learner's cell."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.line for f in frames if OWN_FILE.match(f.filename) and f.line]
    place = f"\nin your line: `{lines[-1]}`" if lines else ""
    return f"Your code raised {type(error).__name__}: {error}{place}"


# --- what is shown -------------------------------------------------------------------


@dataclass
class Verdict:
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
        state = {"right": "right", "open": "not solved yet"}.get(
            self.state, "not right yet"
        )
        name = f"{MARKS[self.state]} Exercise {self.exercise.number}"
        return f"{name}, {self.exercise.title}: {state}"

    def tables(self) -> list[list[list[str]]]:
        """Return the expected and the given rows of texts; ≠ stands at what differs."""
        pair = (self.expected, self.given)
        if not self.case:
            return []
        if not all(map(torch.is_tensor, pair)) or pair[0].shape != pair[1].shape:
            return [[[short(value)]] for value in pair]
        shape = (-1, *pair[0].shape[-2:]) if pair[0].ndim > 1 else (1, 1, -1)
        wrong = apart(*pair, self.exercise.rtol).reshape(shape)
        n, row, column = [*wrong.nonzero().tolist(), [0, 0, 0]][0]  # the first one
        part = (n, *(slice(max(0, i - 2), max(0, i - 2) + 6) for i in (row, column)))
        values = [t.detach().cpu().double().reshape(shape)[part].tolist() for t in pair]
        marks = [["≠" * m for m in line] for line in wrong[part].tolist()]
        return [
            [
                [f"{v:.4g}{m}" for v, m in zip(*r, strict=True)]
                for r in zip(t, marks, strict=True)
            ]
            for t in values
        ]

    def __repr__(self) -> str:
        lines = [self.headline, *self.hint.splitlines()]
        lines += [f"in the case: {self.case}"] * bool(self.case)
        for name, rows in zip(("expected", "yours"), self.tables(), strict=False):
            lines += [f"{name}:", *("  ".join(f"{c:>8}" for c in row) for row in rows)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        hint = re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(self.hint))
        body = f"<strong>{html.escape(self.headline)}</strong>"
        body += f"<div>{hint}</div>".replace("\n", "<br>")
        body += f"<div>In the case <em>{html.escape(self.case)}</em>:</div>" * bool(
            self.case
        )
        for name, rows in zip(("expected", "yours"), self.tables(), strict=False):
            cells = "</tr><tr>".join("".join(map(cell, row)) for row in rows)
            style = "display: inline-table; margin-right: 2em"
            body += f'<table style="{style}"><caption>{name}</caption>'
            body += f"<tbody><tr>{cells}</tr></tbody></table>"
        edge = f"border-left: 5px solid {COLORS[self.state]}; padding: 0.3em 0.8em"
        return f'<div role="status" style="{edge}">{body}</div>'


def cell(text: str) -> str:
    """Return a table's cell, framed if its text ends in ≠."""
    frame = "outline: 2px solid #D55E00" * text.endswith("≠")
    return f'<td style="text-align: right; {frame}">{html.escape(text)}</td>'


def short(value: Any) -> str:
    """Return an outcome that is no table of numbers in at most 160 letters."""
    if torch.is_tensor(value):
        first = value.detach().flatten()[:6].tolist()
        numbers = ", ".join(f"{v:.4g}" for v in first)
        return f"{tuple(value.shape)}, {value.dtype}: {numbers} ..."
    return repr(value)[:160]


# --- one chapter ---------------------------------------------------------------------


class Checks:
    """The exercises of a chapter, and how the last check of each came out.

    `check("3.1", my_function)` checks; `check.progress()` shows how far you are.
    """

    def __init__(self, *exercises: Exercise) -> None:
        self.exercises = {exercise.number: exercise for exercise in exercises}
        self.verdicts = {n: Verdict(e, "open") for n, e in self.exercises.items()}

    def __call__(self, number: str, answer: Any) -> Verdict:
        if number not in self.exercises:
            raise ValueError(f"no exercise {number!r}; there are {[*self.exercises]}")
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


# --- whole notebooks -----------------------------------------------------------------


def checks_of(notebook: Path) -> Path:
    """Return the file that a notebook's exercises, or a copy's, are checked with."""
    named = re.search(r"from (ch\d\d_checks) import", notebook.read_text("utf-8"))
    found = [*COURSE.glob(f"ch??_*/{named[1]}.py")] if named else []
    if not found:
        raise ValueError(f"{notebook} does not import the checks of a chapter")
    return found[0]


def run(notebook: Path, instead: dict[str, str] | None = None) -> dict[str, Verdict]:
    """Run an exercise notebook, but its part "Try it"; return a verdict an exercise.

    `instead` gives other code for the cells of some. A cell that fails is passed over.
    """
    checks, heading = checks_of(notebook), ""
    sys.path.insert(0, str(checks.parent))
    sys.modules.pop(checks.stem, None)
    names: dict[str, Any] = {"__name__": "__main__"}
    for n, part in enumerate(read_json(notebook)["cells"]):
        source = "".join(part["source"])
        if part["cell_type"] != "code":
            heading = [heading, *re.findall(r"^## (.*)", source, re.MULTILINE)][-1]
        elif heading != "Try it":
            stub = STUB.match(source)
            source = (instead or {}).get(stub[1], source) if stub else source
            name = f"<cell {n} of {notebook.name}>"
            linecache.cache[name] = (len(source), None, source.splitlines(True), name)
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.suppress(Exception),
            ):
                exec(compile(source, name, "exec"), names)
    return names["check"].verdicts


def run_apart(notebook: Path) -> list[dict[str, str]]:
    """Run a notebook in a process of its own, with a time limit; a row an exercise."""
    program = [sys.executable, "-m", "shared.support.exercises", "--rows"]
    surroundings = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(COURSE)}
    options: Any = {"env": surroundings, "cwd": checks_of(notebook).parent}
    options |= {"capture_output": True, "encoding": "utf-8", "timeout": SECONDS}
    try:
        done = subprocess.run([*program, str(notebook.resolve())], **options)
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        hint = f"{notebook.name} could not be run: {type(error).__name__}"
        chapter = str(int(checks_of(notebook).stem[2:4]))
        return [{"exercise": chapter, "state": "error", "hint": hint}]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for every chapter, what is wrong in it, and what comes next."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="or those of the course"
    )
    parser.add_argument("--rows", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    following = []
    for path in options.notebooks or sorted(COURSE.glob("ch??_*/ch??_exercises.ipynb")):
        if options.rows:
            found = run(path).items()
            rows = [{"exercise": n, "state": v.state, "hint": v.hint} for n, v in found]
            print(json.dumps(rows))
            return
        rows = run_apart(path)
        print(squares({row["exercise"]: row["state"] for row in rows}))
        for row in rows:
            if row["state"] in ("wrong", "error"):
                print(f"   {row['exercise']} ✗ {row['hint'].splitlines()[0]}")
            if row["state"] != "right":
                following.append(f"next: {row['exercise']} in {path.name}")
    print([*following, "all are solved"][0])


if __name__ == "__main__":
    main()
