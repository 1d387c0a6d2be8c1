"""What runs whole exercise notebooks, and what only teachers use.

    python .site/teaching.py --table handed_in/*.ipynb    CSV: who is stuck on what
    python .site/teaching.py --nbgrader FOLDER            nbgrader's source notebooks
    python .site/teaching.py --gift                       all quizzes, in Moodle's GIFT

`--table` runs what was handed in: do that in an account or a container of its own.
`--nbgrader` writes the folder in which nbgrader's commands (tried: 0.9.6) are then run,
in an environment where the course is installed. Where a function is wanted, nbgrader's
`raise NotImplementedError()` stands in its body, elsewhere below the stub.
`python -m shared.support.exercises` is the learner's overview.
"""

import argparse
import contextlib
import csv
import html
import io
import json
import linecache
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

COURSE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(COURSE))

from shared.support import read_json  # noqa: E402
from shared.support.exercises import Verdict, squares  # noqa: E402

SECONDS = 120  # for one notebook
STUB = re.compile(r"# Exercise (\d+\.\d+[a-z]?)\n")
CHECK = re.compile(r'check\("(\S+)", (\w+)\)')
FOLD = re.compile(
    r"<details><summary>Solution (\S+)</summary>\s*```python\n(.*?\n)```\n"
    r".*?</details>\s*",  # words may stand below the code
    re.DOTALL,
)
QUESTION = re.compile(r"^\d\. (.+)\n\n((?:<details>.+</details>\n?)+)", re.MULTILINE)
OPTION = re.compile(r"<summary>[A-D]\. (.+)</summary>(Right|Wrong)\. (.+)</details>")
Row = dict[str, str]


# --- exercise notebooks ---------------------------------------------------------------


def exercise_notebooks() -> list[Path]:
    """List the course's exercise notebooks, in reading order."""
    return sorted(COURSE.glob("ch??_*/ch??_exercises.ipynb"))


def checks_of(notebook: Path) -> Path:
    """Return the file that a notebook's exercises, or a copy's, are checked with."""
    named = re.search(r"from (ch\d\d_checks) import", notebook.read_text("utf-8"))
    found = [*COURSE.glob(f"ch??_*/{named[1]}.py")] if named else []
    if not found:
        raise ValueError(f"{notebook} does not import the checks of a chapter")
    return found[0]


def prose(notebook: Path) -> str:
    """Return all text of a notebook's markdown cells."""
    cells = read_json(notebook)["cells"]
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    return "\n\n".join(texts)


def solutions(notebook: Path) -> dict[str, str]:
    """Return the folded solutions of an exercise notebook, each as its stub's cell."""
    found = FOLD.findall(prose(notebook))
    return {number: f"# Exercise {number}\n{code}" for number, code in found}


def cells_to_run(notebook: Path) -> Iterator[tuple[int, str]]:
    """Yield number and source of the code cells, but those of the part "Try it"."""
    heading = ""
    for n, cell in enumerate(read_json(notebook)["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            heading = [heading, *re.findall(r"^## (.*)", source, re.MULTILINE)][-1]
        elif heading != "Try it":
            yield n, source


def run(notebook: Path, instead: dict[str, str] | None = None) -> dict[str, Verdict]:
    """Run an exercise notebook, but its part "Try it"; return a verdict an exercise.

    `instead` gives other code for the cells of some. A cell that fails is passed over.
    """
    checks = checks_of(notebook)
    sys.path.insert(0, str(checks.parent))
    sys.modules.pop(checks.stem, None)
    names: dict[str, Any] = {"__name__": "__main__"}
    for n, source in cells_to_run(notebook):
        if stub := STUB.match(source):
            source = (instead or {}).get(stub[1], source)
        name = f"<cell {n} of {notebook.name}>"
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            exec(compile(source, name, "exec"), names)
    return names["check"].verdicts


def rows_of(notebook: Path) -> list[Row]:
    """Run a notebook in a process of its own, with a time limit; a row an exercise."""
    command = [sys.executable, __file__, "--rows", str(notebook.resolve())]
    environment = os.environ | {"MPLBACKEND": "Agg"}
    try:
        done = subprocess.run(
            command,
            cwd=checks_of(notebook).parent,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            timeout=SECONDS,
        )
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        hint = f"was stopped after {SECONDS} seconds: does a loop never end?"
    except (ValueError, IndexError):
        said = done.stderr.strip().splitlines() or ["nothing was written"]
        hint = f"could not be run: {said[-1]}"
    chapter = str(int(checks_of(notebook).stem[2:4]))
    return [{"exercise": chapter, "state": "error", "hint": f"{notebook.name} {hint}"}]


def overview(names: Sequence[str | Path] = ()) -> None:
    """Print a line for every chapter, what is wrong in it, and what comes next."""
    following = []
    if missing := [str(name) for name in names if not Path(name).is_file()]:
        sys.exit(f"error: no file {', '.join(missing)}: give the path from here")
    for path in map(Path, names or exercise_notebooks()):
        rows = rows_of(path)
        print(squares({row["exercise"]: row["state"] for row in rows}))
        for row in rows:
            if row["state"] in ("wrong", "error"):
                first = row["hint"].splitlines()[0]
                print(f"   {row['exercise']} ✗ {first}")
            if row["state"] != "right":
                following.append(f"next: {row['exercise']} in {path.name}")
    print([*following, "all are solved"][0])


# --- teachers -------------------------------------------------------------------------


def table(notebooks: Sequence[Path]) -> None:
    """Write a CSV table to the standard output: file, exercise, state, hint."""
    writer = csv.DictWriter(sys.stdout, ["file", "exercise", "state", "hint"])
    writer.writeheader()
    for path in notebooks:
        writer.writerows({"file": str(path), **row} for row in rows_of(path))


def for_nbgrader(path: Path, folder: Path) -> Path:
    """Write a notebook as an nbgrader source: solution regions, locked checks."""
    notebook, answers = read_json(path), solutions(path)
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            cell["source"] = FOLD.sub("", source)
            continue
        cell["outputs"], cell["execution_count"] = [], None
        if stub := STUB.match(source):
            cell["source"] = with_region(source, answers[stub[1]])
            cell["metadata"] = mark(f"exercise-{stub[1]}", solution=True)
        elif checked := CHECK.fullmatch(source):
            cell["source"] = f"verdict = {source}\ndisplay(verdict)\nassert verdict"
            cell["metadata"] = mark(f"check-{checked[1]}", grade=True, points=1)
    chapter = checks_of(path).parent
    target = folder / "source" / chapter.name[:4] / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    target.write_text(text, encoding="utf-8")
    shutil.copy(checks_of(path), target.parent)
    return target


def with_region(stub: str, code: str) -> str:
    """Mark what a learner has to write: in a stub's last lines, or else below it."""
    start, _, rest = stub.partition("    raise NotImplementedError")
    within = not rest.strip() and code.startswith(start)
    body = code.removeprefix(start if within else code.partition("\n")[0] + "\n")
    indent = body[: len(body) - len(body.lstrip())]
    region = [f"{indent}### BEGIN SOLUTION", body.rstrip(), f"{indent}### END SOLUTION"]
    return "\n".join([(start if within else stub).rstrip(), *region])


def mark(
    name: str, *, solution: bool = False, grade: bool = False, **more: Any
) -> dict:
    """Return nbgrader's metadata of a cell; its names may hold no dots."""
    about = {"grade_id": name.replace(".", "-"), "schema_version": 3, "task": False}
    about |= {"grade": grade, "locked": grade, "solution": solution} | more
    return {"nbgrader": about}


# --- quizzes --------------------------------------------------------------------------


def main_notebooks() -> list[Path]:
    """List the notebooks that end with five questions, in reading order."""
    return [path / f"{path.name}.ipynb" for path in sorted(COURSE.glob("ch??_*"))]


class Option(NamedTuple):
    """An answer to choose, and why it is right or wrong."""

    text: str
    right: bool
    reason: str


def quiz(notebook: Path) -> str:
    """Return the section of a notebook that holds its questions."""
    return prose(notebook).partition("## Five questions\n")[2].partition("\n## ")[0]


def questions(notebook: Path) -> list[tuple[str, list[Option]]]:
    """Return the questions that end a chapter, each with its options."""
    return [
        (question, [Option(t, w == "Right", r) for t, w, r in OPTION.findall(folds)])
        for question, folds in QUESTION.findall(quiz(notebook))
    ]


def for_gift(text: str) -> str:
    """Return what stands in a fold as Markdown, with GIFT's own signs escaped."""
    text = re.sub("</?code>", "`", re.sub("</?(?:i|em)>", "*", text))
    return re.sub(r"([~=#{}:\\])", r"\\\1", html.unescape(text))


def gift(notebook: Path) -> str:
    """Return the questions in Moodle's GIFT format, the reasons as feedback."""
    blocks = []
    for n, (question, options) in enumerate(questions(notebook), 1):
        lines = [f"::{notebook.stem} {n}:: [markdown]{for_gift(question)} {{"]
        for text, right, reason in options:
            verdict = f"{'Right' if right else 'Wrong'}. {reason}"
            lines.append(f"{'~='[right]}{for_gift(text)} #{for_gift(verdict)}")
        blocks.append("\n".join([*lines, "}", ""]))
    return "\n".join(blocks)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="or those of the course"
    )
    parser.add_argument("--table", action="store_true", help="print a CSV table")
    parser.add_argument("--nbgrader", metavar="FOLDER", type=Path, help="write sources")
    parser.add_argument("--gift", action="store_true", help="print the quizzes")
    parser.add_argument("--rows", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    paths = options.notebooks or exercise_notebooks()
    if options.rows:
        found = run(paths[0]).items()
        rows = [{"exercise": n, "state": v.state, "hint": v.hint} for n, v in found]
        print(json.dumps(rows))
    elif options.table:
        table(paths)
    elif options.nbgrader:
        print(*(for_nbgrader(path, options.nbgrader) for path in paths), sep="\n")
    elif options.gift:
        print(*map(gift, options.notebooks or main_notebooks()), sep="\n")
    else:
        parser.error("what shall be done?")


if __name__ == "__main__":
    main()
