"""Every exercise: its stub is open, its solution right, each known mistake is named.

Answers in other words, right and wrong, stand in tests/fixtures/chNN_answers.txt.
"""

import contextlib
import csv
import io
import itertools
import json
import linecache
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from code_lines import lines_of_code

from shared.support import COURSE, exercises, read_json
from shared.support.exercises import Checks, Exercise, Mistake, difference

sys.path.insert(0, str(COURSE / ".site"))
import teaching
from teaching import CHECK, STUB

NOTEBOOKS = teaching.exercise_notebooks()
FEWEST = {1: 6}  # exercises of a chapter; nine elsewhere
MOST_LINES = 30  # of checks, an exercise: no words, no lines of brackets
WORDS_OR_BRACKETS = re.compile(r"""\s*(f?"[^"]*",?|[\])}]+,?|Mistake\()""")
ANSWER = re.compile(r"^# (\d+\.\d+[a-z]?) (right|wrong)(?:: (.*))?$", re.MULTILINE)


def is_untouched(notebook: Path) -> bool:
    """Tell whether an exercise notebook is as we ship it: run once, and all is open."""
    cells = [c for c in read_json(notebook)["cells"] if c["cell_type"] == "code"]
    checks = [c for c in cells if "".join(c["source"]).startswith('check("')]
    shown = all("\u25cb Exercise" in str(c["outputs"]) for c in checks)
    counts = [c["execution_count"] for c in cells]
    return shown and counts == list(range(1, len(cells) + 1))


def chapter_of(notebook: Path) -> int:
    return int(notebook.stem[2:4])


def checks_of(notebook: Path) -> Checks:
    """Return a chapter's checks, read anew, as its notebook imports them."""
    folder = str(notebook.parent)
    sys.path[:0] = [folder]
    try:
        return __import__(teaching.checks_of(notebook).stem).check
    finally:
        sys.path.remove(folder)


def code_of(notebook: Path) -> list[str]:
    cells = read_json(notebook)["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def answers_of(notebook: Path) -> list[tuple[str, str, str | None, str]]:
    """Return the answers in other words: number, right or wrong, hint's part, code."""
    path = COURSE / "tests" / "fixtures" / f"{notebook.stem[:4]}_answers.txt"
    parts = ANSWER.split(path.read_text(encoding="utf-8"))[1:]
    return list(zip(*(parts[n::4] for n in range(4)), strict=True))  # type: ignore


ALL = [(p, e) for p in NOTEBOOKS for e in checks_of(p).exercises.values()]
MISTAKES = [(p, e, m) for p, e in ALL for m in e.mistakes]
ANSWERS = [(p, *answer) for p in NOTEBOOKS for answer in answers_of(p)]

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
each_exercise = pytest.mark.parametrize(
    ("path", "exercise"), ALL, ids=[f"ch{chapter_of(p):02}-{e.number}" for p, e in ALL]
)


def needs_shipped(path: Path) -> None:
    """Skip a test of a notebook as we ship it where a learner has begun to write."""
    if os.environ.get("CI") != "true" and not is_untouched(path):
        pytest.skip("a learner has written into this notebook")


# --- the notebooks ---------------------------------------------------------------


@each_notebook
def test_every_exercise_has_its_parts(path):
    needs_shipped(path)
    numbers = list(checks_of(path).exercises)
    code, text = code_of(path), teaching.prose(path)
    stubs = [n for n, source in enumerate(code) if STUB.match(source)]
    checked = [CHECK.fullmatch(code[n + 1]) for n in stubs]
    assert [STUB.match(code[n])[1] for n in stubs] == numbers
    assert [match[1] for match in checked] == numbers
    assert list(teaching.solutions(path)) == numbers
    headings = re.findall(
        r"^##+ (\d+\.\d+[a-z]?) .*[●○]{3} \(\d+ minutes?\)$", text, re.M
    )
    assert headings == numbers
    assert len(re.findall(r"<details><summary>Hint</summary>", text)) == len(numbers)
    assert text.index("\n## Try it\n") < text.index(f"## {numbers[0]} ")


@each_notebook
def test_every_stub_is_open(path):
    needs_shipped(path)
    verdicts = teaching.run(path)
    assert {n: str(v) for n, v in verdicts.items() if v.state != "open"} == {}


@each_notebook
def test_every_folded_solution_is_right(path):
    verdicts = teaching.run(path, teaching.solutions(path))
    assert {n: str(v) for n, v in verdicts.items() if not v} == {}


@each_exercise
def test_stub_and_solution_begin_alike(path, exercise):
    needs_shipped(path)
    (stub,) = [
        c for c in code_of(path) if c.startswith(f"# Exercise {exercise.number}\n")
    ]
    start, _, rest = stub.partition("    raise NotImplementedError")
    name = re.compile(r"^(?:def|class) (\w+)|^(\w+) = ", re.MULTILINE)
    solution = teaching.solutions(path)[exercise.number]
    if exercise.faulty is None and not rest and "..." not in stub:
        assert solution.startswith(start)
    assert set(name.findall(stub)) <= set(name.findall(solution))


def plain(text: str) -> str:
    return re.sub(r"\s+", "", text)


@each_exercise
def test_no_hint_holds_a_line_of_the_solution(path, exercise):
    text = teaching.prose(path).partition(f"## {exercise.number} ")[2]
    shown = text.partition("<summary>Hint</summary>")[2].partition("</details>")[0]
    stub = "\n".join(c for c in code_of(path) if c.startswith("# Exercise"))
    solution = teaching.solutions(path)[exercise.number].splitlines()[1:]
    lines = [plain(line.partition("  # ")[0]) for line in solution]
    lines = [s for s in lines if len(s) > 12 and s not in plain(stub)]
    for hint in [shown, *(m.hint for m in exercise.mistakes)]:
        assert not [line for line in lines if line in plain(hint)], hint


# --- what the checks say ------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "exercise", "mistake"),
    MISTAKES,
    ids=[f"{e.number}-{e.mistakes.index(m)}" for _, e, m in MISTAKES],
)
def test_each_mistake_gets_its_own_hint(path, exercise, mistake):
    verdict = exercise.check(mistake.answer)
    assert (verdict.state, verdict.hint) == ("wrong", mistake.hint)
    assert mistake.seen


@pytest.fixture(scope="module")
def worlds() -> dict[Path, dict[str, Any]]:
    """Every notebook's names, after its imports and all solutions."""
    found = {}
    for path in NOTEBOOKS:
        checks_of(path)
        found[path] = {"__name__": "__main__"}
        for source in [code_of(path)[0], *teaching.solutions(path).values()]:
            exec(source, found[path])
    return found


@pytest.mark.parametrize(
    ("path", "number", "kind", "part", "code"),
    ANSWERS,
    ids=[f"{number}-{kind}" for _, number, kind, _, _ in ANSWERS],
)
def test_an_answer_in_other_words(worlds, path, number, kind, part, code):
    """Right ones are accepted; wrong ones get the hint that is theirs, or none."""
    checked = rf'^check\("{number}", (\w+)\)'
    (name,) = re.findall(checked, "\n".join(code_of(path)), re.M)
    file = f"<cell {number}>"
    linecache.cache[file] = (len(code), None, code.splitlines(True), file)
    exec(compile(code, file, "exec"), names := dict(worlds[path]))
    exercise = checks_of(path).exercises[number]
    with contextlib.redirect_stdout(io.StringIO()):
        verdict = exercise.check(names[name])
    known = [mistake.hint for mistake in exercise.mistakes]
    if kind == "right":
        assert verdict, str(verdict)
    elif part is None:
        assert verdict.state in ("wrong", "error") and verdict.hint not in known
    else:
        assert verdict.state in ("wrong", "error") and part in verdict.hint
    assert "<script" not in verdict._repr_html_()


# --- how much there is --------------------------------------------------------------


def kind_of(exercise: Exercise) -> str:
    if exercise.number[-1].isalpha():
        return "project"
    if exercise.faulty is not None:
        return "mend it"
    if exercise.judge is exercises.refuses:
        return "break it"
    return "write" if callable(exercise.answer) else "think"


@each_notebook
def test_a_chapter_has_enough(path):
    own = checks_of(path).exercises
    fewest = FEWEST.get(chapter_of(path), 9)
    assert len({number.rstrip("abcdef") for number in own}) >= fewest
    kinds = {kind_of(exercise) for exercise in own.values()}
    assert len(kinds) == 5, kinds
    mistakes = [len(exercise.mistakes) for exercise in own.values()]
    assert min(mistakes) >= 2 and sum(mistakes) >= 3 * len(own)
    source = teaching.checks_of(path).read_text(encoding="utf-8")
    words = [n for n in source.splitlines() if WORDS_OR_BRACKETS.fullmatch(n)]
    lines = lines_of_code(source) - len(words)
    assert lines <= MOST_LINES * len(own), lines
    found = {(number, kind, part is None) for number, kind, part, _ in answers_of(path)}
    for number in own:
        assert (number, "right", True) in found and (number, "wrong", True) in found


# --- the engine ---------------------------------------------------------------------


def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


DOUBLE = Exercise(
    "1.1",
    "twice",
    doubled,
    [Mistake(lambda x: x**2, "Twice, not squared.", "here")],
    "Even.",
    {"a table": (torch.tensor([[0.0, 2.0], [1.0, 3.0]]),), "one": (torch.ones(1),)},
    differentiable=True,
)


@pytest.mark.parametrize(
    ("answer", "state", "part"),
    [
        (doubled, "right", "Even."),
        (lambda x: x * x, "wrong", "Twice, not squared."),
        (lambda x: x + 1, "wrong", "Wrong numbers: 3 of 4."),
        (lambda x: x.mul_(2), "wrong", "changes its input. `x += 1`"),
        (lambda x: 2 * x.detach(), "wrong", "gradients"),
        (lambda x: torch.tensor(2 * x.numpy()), "wrong", "`.numpy()`"),
        (lambda x: (2 * x).T[:1], "wrong", "shape should be (2, 2); yours is (1, 2)."),
        (
            lambda x: (2 * x).long(),
            "wrong",
            "dtype should be torch.float32; yours is torch.int64.",
        ),
        (
            lambda x: (2 * x).tolist(),
            "wrong",
            "It should be a tensor; yours is a list.",
        ),
        (lambda x: None, "wrong", "None comes back: is a `return` missing?"),
        (lambda x: x @ torch.ones(3), "error", "RuntimeError: size mismatch"),
        (lambda: 1, "error", "TypeError"),
        (3, "wrong", "It should be a function or a class."),
        (..., "open", "There is still a `...`, or a None, in it."),
    ],
)
def test_what_is_said(answer, state, part):
    verdict = DOUBLE.check(answer)
    assert verdict.state == state and part in verdict.hint
    assert bool(verdict) == (state == "right")


def test_text_and_page_say_the_same():
    verdict = DOUBLE.check(lambda x: x + torch.tensor([0.0, 1.0]))
    assert str(verdict).splitlines() == [
        "✗ Exercise 1.1, twice: not right yet",
        "Wrong numbers: 3 of 4.",
        "In the case: a table",
        "expected:",
        "       0        4≠",
        "      2≠        6≠",
        "yours:",
        "       0        3≠",
        "      1≠        4≠",
    ]
    page = verdict._repr_html_()
    assert page.count("outline") == 6
    assert re.sub(r"<[^>]+>", " ", page).split() == str(verdict).split()


def test_of_what_is_long_only_the_entry_that_differs_is_shown():
    long = {"names": ["a name"] * 60, "numbers": [torch.zeros(3), torch.ones(3)]}
    other = long | {"numbers": [torch.zeros(3), torch.tensor([1.0, 2.0, 1.0])]}
    text = exercises.Verdict(DOUBLE, "wrong", "", "long", long, other).tables()
    assert text.splitlines() == [
        "expected['numbers'][1]:",
        "       1        1≠         1",
        "yours['numbers'][1]:",
        "       1        2≠         1",
    ]
    short = exercises.Verdict(DOUBLE, "wrong", "", "short", [1, 2], [1, 3])
    assert short.tables() == "expected: [1, 2]\nyours:    [1, 3]"


def test_a_none_that_only_the_check_trips_over():
    judge = lambda answer: answer().shape  # noqa: E731
    shape = Exercise("1.6", "a shape", lambda: doubled(torch.ones(2)), [], "", {"": ()})
    verdict = shape._replace(judge=judge).check(lambda: None)
    assert verdict.hint == "None comes back: is a `return` missing?"


def test_an_unknown_number_is_told():
    with pytest.raises(ValueError, match=r"1.10 is none of 1.1"):
        Checks(DOUBLE)("1.10", doubled)


def test_the_first_difference_is_in_sight():
    expected, given = torch.zeros(2, 3, 9, 9), torch.zeros(2, 3, 9, 9)
    given[1, 2, 8, 7] = 1
    verdict = exercises.Verdict(DOUBLE, "wrong", "", "big", expected, given)
    assert verdict.tables().count("1≠") == verdict.tables().count("0≠") == 1


@pytest.mark.parametrize(
    ("expected", "given", "said"),
    [
        (3, 3.0, ""),
        (3, torch.tensor(3), ""),
        (12345, 12346, "large"),
        (0.5, 0.50001, ""),
        (0.5, 0.4, "small"),
        (float("nan"), float("nan"), ""),
        ((2, 3), torch.Size([2, 3]), ""),
        ((2, 3), [2, 4], "Entry `[1]`: It is too large."),
        ((2, 3), (2, 3, 1), "The length should be 2; yours is 3."),
        ({"q": (1, [2])}, {"q": (1, [3])}, "Entry `['q'][1][0]`: It is too large."),
        ({"q": 1}, {"k": 1}, "The keys should be ['q']; yours are ['k']."),
        ("mask", "softmax", "Something else is wanted here."),
        ({1}, {2}, "Something else"),
        ("refused", "accepted", "It lets a bad one pass."),
        ("accepted", "refused", "It refuses a good one."),
        (True, 1, ""),
        ({"a": True}, {"a": False}, "Entry `['a']`: It should be True."),
        (None, 8, "It should be None; yours is a number."),
        ((2, 3), 2, "It should be a tuple such as (2, 3); yours is a number."),
        ([2], "2", "It should be a list such as [2, 3]; yours is a str."),
        (2, [2, 3], "It should be a number; yours is a list."),
        (3.0, float("nan"), "It is nan."),
        (ValueError("a"), ValueError("b"), ""),
        (ValueError("a"), 1, "A ValueError should be raised here."),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), ""),
        (torch.ones(2), torch.ones(2, 1), "shape"),
        (torch.ones(2), 1.0, "It should be a tensor; yours is a number."),
        (torch.tensor(1.0), torch.ones(1), "shape should be (); yours is (1,)."),
        (torch.ones(1), torch.tensor(1.0), "shape should be (1,); yours is ()."),
        (1.0, torch.ones(1), "It should be a number; yours is a tensor."),
        (float("inf"), 3.0, "small"),
    ],
)
def test_difference(expected, given, said):
    found = difference(expected, given)
    assert said in found and bool(found) == bool(said)


def test_a_value_is_not_given_away():
    number = Exercise("1.2", "how many", 73, [Mistake(36, "Twice?", "here")], "Many.")
    assert "73" not in str(number.check(70)) + number.check(70)._repr_html_()
    assert number.check(36).hint == "Twice?" and number.check(73.0)
    assert number.check(len).hint == "It should not be a function or a class."
    pair = Exercise("1.3", "two", (1, 2), [], "")
    assert pair.check((1, ...)).state == "open" and pair.check([1, 2])


def slips(mistake: Mistake, exercise: Exercise) -> dict:
    right = exercise.answer
    return {k: v for k, v in mistake.answer.items() if difference(right[k], v)}


DICTS = [exercise for _, exercise in ALL if isinstance(exercise.answer, dict)]


@pytest.mark.parametrize("exercise", DICTS, ids=lambda exercise: exercise.number)
def test_each_entry_is_judged_by_itself(exercise):
    """Whoever makes two mistakes is told of the one in the first wrong entry."""
    for one, other in itertools.permutations(exercise.mistakes, 2):
        if slips(one, exercise).keys() & slips(other, exercise).keys():
            continue
        made = slips(one, exercise) | slips(other, exercise)
        verdict = exercise.check(exercise.answer | made)
        first = next(name for name in exercise.answer if name in made)
        (told, *_) = [m for m in exercise.mistakes if m.hint == verdict.hint]
        assert first in slips(told, exercise), (made, verdict.hint)
        assert not difference(made | slips(told, exercise), made)


def test_two_slips_of_which_one_is_unknown():
    right = {"q": (2, 3), "k": (3, 2)}
    known = [Mistake(right | {"k": (2, 3)}, "Turned?", "here")]
    pair = Exercise("1.4", "two shapes", right, known, "")
    assert pair.check({"q": (1, 1), "k": [2, 3]}).hint == "Turned?"
    assert "['q'][0]" in pair.check({"q": (1, 1), "k": (3, 2)}).hint
    assert "['k'][1]" in pair.check({"q": (2, 3), "k": (3, 1)}).hint
    assert pair.check({"q": (1, 1)}).hint.startswith("The keys should be")


def test_what_was_mended_without_effect_is_still_open():
    mend = Exercise(
        "1.5", "mend it", doubled, [], "", DOUBLE.cases, faulty=lambda x: x + x + 1
    )
    verdict = mend.check(lambda x: 1 + 2 * x)
    said = "In every case it still does what it did."
    assert (verdict.state, verdict.hint) == ("open", said)
    assert mend.check(lambda x: 3 * x).state == "wrong" and mend.check(doubled)


def test_an_error_names_the_learners_line(tmp_path):
    code = "def f(x):\n    y = x + 1\n    return quries"
    file = "<cell 3 of my.ipynb>"
    linecache.cache[file] = (len(code), None, code.splitlines(True), file)
    exec(compile(code, file, "exec"), names := {})
    verdict = DOUBLE.check(names["f"])
    assert verdict.state == "error"
    assert verdict.hint == (
        "Your code raised NameError: name 'quries' is not defined\n"
        "in your line: `return quries`"
    )


# --- programs -----------------------------------------------------------------------


def changed_copy(path: Path, target: Path, instead: dict[str, str]) -> Path:
    """Write the notebook as it is after a learner has filled in some stubs."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        stub = STUB.match("".join(cell["source"]))
        if stub and stub[1] in instead:
            cell["source"] = instead[stub[1]]
    target.write_text(json.dumps(notebook), encoding="utf-8")
    return target


CHAPTER_3 = COURSE / "ch03_attention" / "ch03_exercises.ipynb"


def test_what_is_next(tmp_path, capsys):
    right = teaching.solutions(CHAPTER_3)
    half = {"3.1": right["3.1"], "3.2": "# Exercise 3.2\nraise SystemError\n"}
    mine = changed_copy(CHAPTER_3, tmp_path / "mine.ipynb", half)
    teaching.overview([mine])
    squares, following = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Chapter 3: ■□+ 1 of \d+ solved", squares)
    assert following == "next: 3.2 in mine.ipynb"


def test_an_endless_loop_ends(tmp_path, capsys, monkeypatch):
    loop = {"3.1": "# Exercise 3.1\nwhile True: pass"}
    mine = changed_copy(CHAPTER_3, tmp_path / "mine.ipynb", loop)
    monkeypatch.setattr(teaching, "SECONDS", 4)
    teaching.overview([mine])
    said = "3 ✗ mine.ipynb was stopped after 4 seconds: does a loop never end?"
    assert said in capsys.readouterr().out


def test_a_process_that_dies_is_told(tmp_path, capsys):
    dies = {"3.1": '# Exercise 3.1\nimport os\nprint("so long")\nos._exit(1)'}
    mine = changed_copy(CHAPTER_3, tmp_path / "mine.ipynb", dies)
    teaching.overview([mine])
    said = "3 ✗ mine.ipynb could not be run: nothing was written"
    assert said in capsys.readouterr().out


def test_a_notebook_without_checks_is_named(tmp_path):
    (tmp_path / "x.ipynb").write_text('{"cells": []}')
    with pytest.raises(ValueError, match="x.ipynb does not import the checks"):
        teaching.checks_of(tmp_path / "x.ipynb")


def test_tables_of_a_class_and_sources_for_nbgrader(tmp_path, capsys):
    right = teaching.solutions(CHAPTER_3)
    mine = {"3.1": right["3.1"], "3.6": "# Exercise 3.6\ncache_bytes = 36_864_000"}
    changed_copy(CHAPTER_3, tmp_path / "ada.ipynb", mine)
    teaching.main(["--table", str(tmp_path / "ada.ipynb")])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    states = {row["exercise"]: row["state"] for row in rows}
    assert states.pop("3.1") == "right" and states.pop("3.6") == "wrong"
    assert set(states.values()) == {"open"}
    assert "besides the keys" in next(r["hint"] for r in rows if r["exercise"] == "3.6")

    written = teaching.for_nbgrader(CHAPTER_3, tmp_path)
    cells = nbformat.read(written, as_version=4).cells
    marked = {c.metadata.nbgrader.grade_id: c for c in cells if c.metadata}
    assert len(marked) == 2 * len(right)
    before, solution = marked["exercise-3-1"].source.split("### BEGIN SOLUTION")
    assert before.endswith('"""\n    ') and "exp()" in solution
    for number in ("3.2", "3.8"):  # values, and what is to be mended: the stub stays
        (stub,) = (c for c in code_of(CHAPTER_3) if f"# Exercise {number}\n" in c)
        source = marked[f"exercise-{number.replace('.', '-')}"].source
        assert source.startswith(f"{stub}\n### BEGIN SOLUTION\n")
    shown = 'verdict = check("3.9a", padding_mask)\ndisplay(verdict)\nassert verdict'
    assert marked["check-3-9a"].source == shown
    assert "<summary>Solution" not in teaching.prose(written)
    assert (written.parent / "ch03_checks.py").is_file()


def test_words_may_stand_below_the_code_of_a_solution(tmp_path):
    fold = "<details><summary>Solution 1.{0}</summary>\n\n```python\nx = {0}\n```\n\n"
    text = "".join(fold.format(n) + "Look.\n\n</details>\n\n" for n in (1, 2))
    cells = [nbformat.v4.new_markdown_cell(text)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "x.ipynb")
    found = teaching.solutions(tmp_path / "x.ipynb")
    assert found == {f"1.{n}": f"# Exercise 1.{n}\nx = {n}\n" for n in (1, 2)}


def test_quizzes_for_moodle(tmp_path, capsys):
    options = [
        "A. <code>K = {3}</code></summary>Wrong. <i>Not</i> #3.",
        "B. 4</summary>Right. 4 &lt; 5.",
        "C. K: none</summary>Wrong. ~4",
    ]
    folds = [f"<details><summary>{option}</details>" for option in options]
    text = "## Five questions\n\nChoose.\n\n1. What is {K}?\n\n" + "\n".join(folds)
    cell = nbformat.v4.new_markdown_cell(text + "\n\n## Summary\n\n1. No.")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "q.ipynb")
    teaching.main(["--gift", str(tmp_path / "q.ipynb")])
    assert capsys.readouterr().out.strip().split("\n") == [
        "::q 1:: [markdown]What is \\{K\\}? {",
        "~`K \\= \\{3\\}` #Wrong. *Not* \\#3.",
        "=4 #Right. 4 < 5.",
        "~K\\: none #Wrong. \\~4",
        "}",
    ]


def test_every_chapter_ends_with_five_questions():
    asked = []
    for notebook in teaching.main_notebooks():
        found = teaching.questions(notebook)
        section = teaching.quiz(notebook)
        assert len(found) == len(re.findall(r"^\d\. ", section, re.MULTILINE)) == 5
        assert section.count("<details>") == sum(len(options) for _, options in found)
        assert "\n## Summary" in teaching.prose(notebook).partition(section)[2]
        for question, options in found:
            assert len(options) in (3, 4), question
            assert sum(option.right for option in options) == 1, question
            assert len({option.text for option in options}) == len(options), question
            assert not re.search(r"`|\*\w|\$", str(options)), "folds are HTML"
        letters = re.findall(r"^<details><summary>(.)", section, re.MULTILINE)
        assert "".join(letters).replace("D", "") == 5 * "ABC"
        assert len({[o.right for o in options].index(True) for _, options in found}) > 2
        asked += [options for _, options in found]
    assert len(asked) == 35
    longest = [max(options, key=lambda option: len(option.text)) for options in asked]
    assert sum(option.right for option in longest) < len(asked) / 3
