"""`shared/support/export.py`: notebooks become modules, and stay as they are stored.

Most tests are about small courses that they build; the last ones are about ours.
"""

import ast
import difflib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import (
    new_code_cell,
    new_markdown_cell,
    new_notebook,
    new_output,
)

from shared.support import COURSE, export

WORDS = "ch02_words/ch02_words.ipynb"  # the notebook that most tests are about
COMMAND = "python -m shared.support.export"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty course: a folder that holds `shared/`."""
    course = tmp_path.resolve() / "course"
    (course / "shared").mkdir(parents=True)
    return course


def save(root: Path, name: str, *cells: str, promise: str = "> Counts words.") -> Path:
    """Write a notebook of these cells ("ch02_words", or with a folder before it).

    A cell that starts with "## " is markdown, any other one is code.
    """
    path = root / (name if "/" in name else f"{name}/{name}")
    path = path.with_suffix(".ipynb")
    notebook = new_notebook(cells=[new_markdown_cell(f"# Title\n\n{promise}\n\nMore.")])
    for source in cells:
        is_code = not source.startswith("## ")
        new_cell = new_code_cell if is_code else new_markdown_cell
        notebook.cells.append(new_cell(source))
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return path


def run(root: Path, *arguments: str) -> int:
    return export.main(list(arguments), root)


def module(root: Path, topic: str) -> str:
    return (root / "shared" / f"{topic}.py").read_text(encoding="utf-8")


def body(text: str) -> str:
    """What a module holds behind its docstring."""
    return text.split('edit the notebook, not this file.\n"""\n\n', 1)[1]


# -------------------------------------------------------------------- what is written


def test_the_whole_module_byte_for_byte(root):
    """Worked out by hand: order, imports, names, sections, comments, formatting."""
    save(
        root,
        "ch02_words",
        "#| export\nimport re\nfrom collections import Counter  # a dict of numbers\n",
        "## 2.1 What is a *word*?\n\nText.\n\n### A pattern",
        "print('not exported')",
        "#| exporti\n# One word.\nWORD = re.compile(r'\\w+')",
        "#| export\nimport math\nimport re\n\nclass Table:\n    size = math.inf",
        "## 2.2 How many `words` are there?",
        "## Summary of a section that exports nothing",
        "## 2.3 Count",
        "#| export\n"
        "from collections import Counter, OrderedDict as Ordered\n"
        "from collections.abc import Iterable\n"
        "def count(texts: Iterable[str]) -> Counter[str]:\n"
        '    """Count words."""\n'
        "    counts = Counter()\n"
        "\n"
        "    for text in texts:  # one by one\n"
        "        counts.update(WORD.findall( text ))\n"
        "    return counts\n"
        "\n"
        "_CACHE = Ordered()",
        "#| exporti\ndef helper(): pass",
    )
    assert run(root) == 0
    written = (root / "shared/words.py").read_bytes().decode()
    assert written == (
        '"""Counts words.\n'
        "\n"
        "Generated from ch02_words/ch02_words.ipynb by\n"
        "`python -m shared.support.export`; edit the notebook, not this file.\n"
        '"""\n'
        "\n"
        "import math\n"
        "import re\n"
        "from collections import Counter  # a dict of numbers\n"
        "from collections import OrderedDict as Ordered\n"
        "from collections.abc import Iterable\n"
        "\n"
        '__all__ = ["Table", "count"]\n'
        "\n"
        "# Section 2.1: What is a word?\n"
        "# One word.\n"
        'WORD = re.compile(r"\\w+")\n'
        "\n"
        "\n"
        "class Table:\n"
        "    size = math.inf\n"
        "\n"
        "\n"
        "# Section 2.3: Count\n"
        "def count(texts: Iterable[str]) -> Counter[str]:\n"
        '    """Count words."""\n'
        "    counts = Counter()\n"
        "\n"
        "    for text in texts:  # one by one\n"
        "        counts.update(WORD.findall(text))\n"
        "    return counts\n"
        "\n"
        "\n"
        "_CACHE = Ordered()\n"
        "\n"
        "\n"
        "def helper():\n"
        "    pass\n"
    )


def test_a_notebook_that_exports_nothing_gives_an_empty_module(root):
    save(root, "ch02_words", "A = 1", "#  export\nB = 2")
    assert run(root) == 0
    assert body(module(root, "words")) == "__all__ = []\n"


def test_what_counts_as_a_public_name(root):
    code = "A = B = 1\n(C, [*D]) = 1, [2]\nE: int = 3\nA.x = D[0] = 4\nF += 5\n_G = 6"
    save(root, "ch02_words", f"#| export\n{code}\nasync def h(): i = 7")
    assert run(root) == 0
    assert '__all__ = ["A", "B", "C", "D", "E", "h"]\n' in module(root, "words")


def test_imports_are_gathered_and_grouped(root):
    save(
        root,
        "ch02_words",
        "#| export\nimport torch  # tensors\nA = torch.e",
        "#| export\nfrom __future__ import annotations\nimport regex\n"
        "from shared.support.files import (\n    write_whole,\n    sha256_of,\n)\n"
        "import os.path, sys\nB = 1",
        "#| export\nimport torch\nC = 2",
    )
    assert run(root) == 0
    assert body(module(root, "words")) == (
        "from __future__ import annotations\n"
        "\n"
        "import os.path\n"
        "import sys\n"
        "\n"
        "import regex\n"
        "import torch  # tensors\n"
        "\n"
        "from shared.support.files import (\n"
        "    sha256_of,\n"
        "    write_whole,\n"
        ")\n"
        "\n"
        '__all__ = ["A", "B", "C"]\n'
        "\n"
        "A = torch.e\n"
        "\n"
        "B = 1\n"
        "\n"
        "C = 2\n"
    )


def test_only_imports_of_the_module_itself_are_moved(root):
    code = 'A = """\nimport os\n# Text."""\nimport math\ndef f():\n    import json'
    save(root, "ch02_words", f"#| export\n{code}")
    assert run(root) == 0
    _, imported, _, text, function = ast.parse(module(root, "words")).body
    assert ast.unparse(imported) == "import math"
    assert ast.literal_eval(text.value) == "\nimport os\n# Text."
    assert ast.unparse(function) == "def f():\n    import json"


def test_nothing_is_executed_or_imported(root):
    marker = root / "executed"
    touch = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    save(root, "ch02_words", touch, f"#| export\nimport no_such_module\nA = {touch}")
    assert run(root) == 0
    assert not marker.exists()


@pytest.mark.parametrize(
    ("promise", "docstring"),
    [
        (">An **apt** *and* `code_with_x` ", "An apt and code_with_x"),
        ("> See [the *paper*](https://a.b/c).\n> More.", "See the paper."),
        ('> A "quote", é → ✓ and "end".', None),
        ("> " + "two-fold words " * 20, None),
    ],
)
def test_docstring_is_the_promise_in_plain_text(root, promise, docstring):
    save(root, "ch02_words", promise=promise)
    assert run(root) == 0
    text = module(root, "words")
    first, origin = ast.get_docstring(ast.parse(text)).split("\n\n")
    assert first.replace("\n", " ") == (docstring or promise[2:].strip())
    assert origin.startswith(f"Generated from {WORDS} by\n`{COMMAND}`; ")
    assert max(map(len, text.split("\n"))) <= 88


def test_many_names_stand_several_on_a_line(root):
    names = [f"a_rather_long_name_{n}" for n in range(20)]
    save(root, "ch02_words", "#| export\n" + "\n".join(f"{name} = 1" for name in names))
    assert run(root) == 0
    listed = module(root, "words").partition("__all__ = [")[2].partition("]")[0]
    assert ast.literal_eval(f"[{listed}]") == names
    assert listed.count("\n") < 10 and max(map(len, listed.split("\n"))) <= 88


# -------------------------------------------------------------------------- same bytes


def test_only_the_sources_of_the_cells_matter(root):
    path = save(root, "ch02_words", "#| export\nA = 1", "A")
    run(root)
    before = module(root, "words")
    notebook = nbformat.read(path, as_version=4)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"other-{number}"
        cell.metadata.tags = ["nbval-ignore-output"]
    notebook.cells[1].execution_count = 41
    notebook.cells[1].outputs = [new_output("stream", text="another output\n")]
    nbformat.write(notebook, path)
    assert run(root, "--check") == 0
    assert run(root) == 0
    assert module(root, "words") == before


def test_a_readers_ruff_settings_and_folders_do_not_matter(root, monkeypatch):
    code = "import torch, regex\nfrom shared.support import COURSE\nA = 'a'"
    save(root, "ch02_words", f"#| export\n{code}")
    run(root)
    folder = root / "elsewhere"
    (folder / "torch").mkdir(parents=True)  # as if torch were a package of ours
    settings = "line-length = 20\n[format]\nquote-style = 'single'\n"
    settings += "[lint.isort]\nforce-single-line = true\n"
    (folder / "ruff.toml").write_text(settings)
    monkeypatch.chdir(folder)
    assert run(root, "--check") == 0


# ----------------------------------------------------------------------------- --check


def test_check_tells_what_is_in_step_and_what_is_not(root, capsys):
    save(root, "ch01_intro", "#| export\nA = 1")
    save(root, "ch02_words", "#| export\nA = 1")
    assert run(root) == 0
    wrote = "ch01_intro: wrote shared/intro.py\nch02_words: wrote shared/words.py\n"
    assert capsys.readouterr() == (wrote, "")
    intro = "ch01_intro: shared/intro.py is in step\n"
    words = "ch02_words: shared/words.py is in step\n"
    assert run(root, "--check") == 0
    assert capsys.readouterr() == (intro + words, "")

    edited = module(root, "words").replace("A = 1", "A = 2")
    (root / "shared/words.py").write_text(edited)
    assert run(root, "--check") == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{intro}--- shared/words.py\n")
    assert "\n-A = 2\n+A = 1\n" in out
    advice = f"run `{COMMAND} ch02_words`"
    assert err == f"shared/words.py is not in step: {advice}\n"
    assert module(root, "words") == edited  # nothing was written
    assert run(root) == 0 and run(root, "--check") == 0


def test_check_sees_a_changed_end_of_file(root):
    save(root, "ch02_words", "#| export\nA = 1")
    run(root)
    text = module(root, "words")
    for edited in (text[:-1], text + "\n"):
        (root / "shared/words.py").write_text(edited)
        assert run(root, "--check") == 1


def test_check_does_not_write_a_missing_module(root, capsys):
    save(root, "ch02_words", "#| export\nA = 1")
    assert run(root, "--check") == 1
    assert "\n+A = 1\n" in capsys.readouterr().out
    assert not (root / "shared/words.py").exists()


# ---------------------------------------------------------------------- which notebooks


def test_ways_to_name_a_notebook(root, monkeypatch):
    """A bare name works anywhere, a path from the current or the top folder."""
    first = save(root, "ch01_intro", "#| export\nA = 1")
    save(root, "ch02_words", "#| export\nA = 1")
    elsewhere = save(root.parent, "ch01_intro", "#| export\nCOPY = 1").parent
    paths = ["ch01_intro/ch01_intro.ipynb", str(first)]
    for name in ["ch01_intro", "ch01_intro.ipynb", *paths, "../course/" + paths[0]]:
        monkeypatch.chdir(root if name.startswith("..") else elsewhere)
        assert run(root, "--check", name) == 1, name
        assert run(root, name) == 0, name
        assert "A = 1" in module(root, "intro"), name
        assert os.listdir(root / "shared") == ["intro.py"]
        (root / "shared/intro.py").unlink()


def test_names_that_are_no_notebook_of_the_course(root, capsys, monkeypatch):
    monkeypatch.chdir(root)
    save(root, "ch02_words", "#| export\nA = 1")
    for name in ("ch02_exercises", "ch02_words-Copy1"):
        save(root, f"ch02_words/{name}", "#| export\nthis is not Python")
    save(root, "elsewhere/ch03_more", "#| export\nA = 1")
    assert run(root) == 0
    assert os.listdir(root / "shared") == ["words.py"]
    capsys.readouterr()
    others = ["ch02_exercises", "ch02_words-Copy1", "elsewhere/ch03_more.ipynb"]
    assert run(root, *others, "ch09_none", "shared/words.py") == 1
    lines = capsys.readouterr().err.splitlines()
    rule = "only ch*/chNN_<topic>.ipynb exports a module"
    assert lines == [
        f"ch02_words/ch02_exercises.ipynb: {rule}",
        f"ch02_words/ch02_words-Copy1.ipynb: {rule}",
        "ch03_more: the course has no such notebook",
        "ch09_none: the course has no such notebook",
        "words: the course has no such notebook",
    ]


def test_reading_order(root):
    """By chapter; the notebook that its folder is named after comes first."""
    for name in ("ch05_b/ch05_a", "ch05_b/ch05_b", "ch05_b/ch05_c", "ch04_z/ch04_z"):
        save(root, name)
    names = [path.stem for path in export.find_notebooks(root)]
    assert names == ["ch04_z", "ch05_b", "ch05_a", "ch05_c"]


def test_a_notebook_may_export_nothing(root):
    save(root, "ch02_words", "#| export\nA = 1")
    save(
        root, "ch02_words/ch02_looks", "B = 2", promise="> Looks. **Exports:** nothing"
    )
    assert run(root) == 0
    assert os.listdir(root / "shared") == ["words.py"]


# ---------------------------------------------------------------------------- refusals

DIRECTIVE = ": a directive is a first line, `#| export` or `#| exporti`"
LATER = "is not an earlier module of the course"
REFUSED = [  # a code cell, its refused line, and the reason
    (
        "#| export\nA = 1\n%matplotlib inline",
        3,
        "no Python, invalid syntax: `%matplotlib inline`",
    ),
    ("#| export\n%%time\nA = 1", 2, "no Python, invalid syntax: `%%time`"),
    ("#| exporti\ndef f():\n    !ls", 3, "no Python, invalid syntax: `!ls`"),
    ("#| export\nA = !ls", 2, "no Python, invalid syntax: `A = !ls`"),
    ("#| export\nmath.sqrt?", 2, "no Python, invalid syntax: `math.sqrt?`"),
    ("#| export\nA = 1\n\nB = = 2  # why?", 4, "no Python, invalid syntax"),
    ("#| export\ndef f():\nreturn 1", 3, "no Python, expected an indented block"),
    ("#| export\nTWICE = 1\nTWICE = 2", 3, "`TWICE` is exported twice"),
    ("#| exporti\ndef TWICE(): pass", 2, "`TWICE` is exported twice"),
    ("#| export\nx, *TWICE = 1, 2", 2, "`TWICE` is exported twice"),
    ("#| export\nimport shared.later as x", 2, f"`shared.later` {LATER}"),
    ("#| export\nfrom shared.later import y", 2, f"`shared.later` {LATER}"),
    ("#| export\nfrom shared import intro, later", 2, f"`shared.later` {LATER}"),
    ("#| export\n\nfrom shared import (\n    next\n)", 3, f"`shared.next` {LATER}"),
    ("#| export\ndef g():\n    import shared.later", 3, f"`shared.later` {LATER}"),
    ("#| export\nfrom shared.words import A", 2, f"`shared.words` {LATER}"),
    ("#|export\nx = 1", 1, f"`#|export`{DIRECTIVE}"),
    ("# | export\nx = 1", 1, f"`# | export`{DIRECTIVE}"),
    ("  #| export\nx = 1", 1, f"`#| export`{DIRECTIVE}"),
    ("#| export \nx = 1", 1, f"`#| export`{DIRECTIVE}"),
    ("#| Export\nx = 1", 1, f"`#| Export`{DIRECTIVE}"),
    ("#| export: true\nx = 1", 1, f"`#| export: true`{DIRECTIVE}"),
    ("#| exporti  # inside\nx = 1", 1, f"`#| exporti  # inside`{DIRECTIVE}"),
    ("#| exprot\nx = 1", 1, f"`#| exprot`{DIRECTIVE}"),
    ("#| default_exp words\nx = 1", 1, f"`#| default_exp words`{DIRECTIVE}"),
    ("%%time\n#| export\nx = 1", 2, f"`#| export`{DIRECTIVE}"),
    ("\n#| export\nx = 1", 2, f"`#| export`{DIRECTIVE}"),
    ("#| export\nz = 1\n    #| hide\n", 3, f"`#| hide`{DIRECTIVE}"),
    ("#| export  # note\nx = 1", 1, f"`#| export  # note`{DIRECTIVE}"),
    ("x = 1\n#| export", 2, f"`#| export`{DIRECTIVE}"),
    ("##| export\nx = 1", 1, f"`##| export`{DIRECTIVE}"),
    ("#export\nx = 1", 1, f"`#export`{DIRECTIVE}"),
    ("#:exporti\nx = 1", 1, f"`#:exporti`{DIRECTIVE}"),
    ("#\uff5c export\nx = 1", 1, f"`#\uff5c export`{DIRECTIVE}"),
    ("\ufeff#| export\nx = 1", 1, f"`\ufeff#| export`{DIRECTIVE}"),
    ("#\u00a0| export\nx = 1", 1, f"`#\u00a0| export`{DIRECTIVE}"),
]


def test_everything_that_is_refused_is_shown_at_once(root, capsys):
    """Status 1, the old module untouched; the other notebooks get theirs."""
    for name in ("ch01_intro", "ch02_words/ch02_next", "ch03_later"):
        save(root, name, "#| export\nNEW = 1")
    cells = [cell for cell, _, _ in REFUSED]
    save(root, "ch02_words", "#| export\nFIRST = 1", *cells, promise="No promise.")
    (root / "shared/words.py").write_text("OLD = 1\n")
    assert run(root) == 1
    first, *found = capsys.readouterr().err.splitlines()
    assert first == f"{WORDS}: the first cell has no `> ` line"
    assert len(found) == len(REFUSED)
    for number, (line, (_, at, reason)) in enumerate(zip(found, REFUSED, strict=True)):
        place = f"{WORDS}, code cell {number + 2}, line {at}"
        assert line.startswith(f"{place}: {reason}")
    assert module(root, "words") == "OLD = 1\n"
    for topic in ("intro", "next", "later"):
        assert "NEW = 1" in module(root, topic)
    assert run(root, "--check") == 1
    assert capsys.readouterr().err.splitlines() == [first, *found]


def test_prose_may_speak_of_directives(root):
    save(root, "ch02_words", "## 2.1 Export\n\n#| export, says nbdev", "# | a bar")
    assert run(root) == 1  # the comment
    save(root, "ch02_words", "## 2.1 Export\n\n`#| export` marks", "# export, later")
    assert run(root) == 0


# ------------------------------------------------------------------------------ copies

COPIES = [  # as JupyterLab, Windows, macOS, GNOME and people name them
    "ch02_words-Copy1/ch02_words", "ch02_words - Copy/ch02_words",
    "ch02_words copy/ch02_words", "ch02_words (1)/ch02_words",
    "ch02_words_mine/ch02_words", "ch02_old/ch02_words",
    "ch02_words/ch02_words-Copy1", "ch02_words/ch02_words copy",
    "ch02_words/ch02_words_copy", "ch02_words/ch02_mine",
]  # fmt: skip


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_beside_the_original_changes_nothing(root, capsys, copy):
    last = 'export.main(["--check", "ch02_words"])'
    save(root, "ch02_words", "#| export\nRIGHT = 1", last)
    save(root, copy, "#| export\nWRONG = 1", last)
    assert run(root) == 0
    assert os.listdir(root / "shared") == ["words.py"]
    assert "RIGHT = 1" in module(root, "words")
    for arguments in ([], ["ch02_words"]):
        assert run(root, "--check", *arguments) == 0
    assert export.find_notebooks(root) == [root / WORDS]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("folder", "told", "noted"),
    [
        ("ch02_words", {}, False),  # as nbval and nbconvert run it
        ("ch02_words", {"JPY_SESSION_NAME": "ch02_words.ipynb"}, False),
        ("ch02_words", {"JPY_SESSION_NAME": "ch02_words-Copy1.ipynb"}, True),
        ("ch02_words", {"JPY_SESSION_NAME": "/else/where.ipynb"}, False),  # inherited
        ("ch02_words copy", {"JPY_SESSION_NAME": "ch02_words.ipynb"}, True),
        ("ch02_words copy", {}, True),
        (".", {}, True),  # papermill, or an editor
        (".", {"__vsc_ipynb_file__": "ch02_words/ch02_words.ipynb"}, False),
        (".", {"__vsc_ipynb_file__": "ch02_words/mine.ipynb"}, True),
    ],
)
@pytest.mark.parametrize("in_step", [True, False])
def test_the_last_cell_tells_a_copy_from_a_change(
    root, monkeypatch, capsys, folder, told, noted, in_step
):
    save(root, "ch02_words", "#| export\nA = 1")
    assert run(root) == 0
    if not in_step:
        save(root, "ch02_words", "#| export\nA = 2")
    (root / folder).mkdir(exist_ok=True)
    monkeypatch.chdir(root / folder)
    names = {n: f"{root / v}" for n, v in told.items() if n.startswith("__")}
    shell = SimpleNamespace(user_ns=names)
    ipython = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    if name := told.get("JPY_SESSION_NAME"):
        monkeypatch.setenv("JPY_SESSION_NAME", str(root / folder / name))
    assert run(root, "--check", "ch02_words") == (not in_step)
    said = capsys.readouterr().err
    assert ("not in step" in said) == (not in_step)
    assert ("note: this runs in " in said) == noted
    assert not noted or f"checked was {root / WORDS}; " in said


def test_imports_that_are_allowed(root):
    """Earlier chapters, earlier notebooks of the chapter, and what helps them all."""
    save(root, "ch04_a", "#| export\nA = 1")
    save(root, "ch05_b", "import shared.z", "#| export\nA = 1")
    imports = (
        "import shared.a as a\nfrom shared import b\nfrom shared.b import A as z\n"
    )
    imports += "from shared.support import files\nfrom shared.support.z import z as y\n"
    save(root, "ch05_b/ch05_a_second", f"#| export\n{imports}")
    save(root, "ch06_z")
    assert run(root) == 0


@pytest.mark.parametrize("content", [b"\xff\xfe", b'<<<<<<< HEAD\n{"cells": []}'])
def test_a_damaged_notebook_is_named_and_left_alone(root, capsys, content):
    path = save(root, "ch02_words", "#| export\nA = 1")
    save(root, "ch03_later", "#| export\nA = 1")
    path.write_bytes(content)
    for option in ([], ["--check"], ["--clean"]):
        assert run(root, *option) == 1
        out, err = capsys.readouterr()
        assert out.startswith("ch03_later: ")
        assert err.startswith(str(path)) and err.count("\n") == 1
    assert path.read_bytes() == content
    assert os.listdir(root / "shared") == ["later.py"]


# ----------------------------------------------------------------------------- --clean


def stored(*cells: dict) -> str:
    """The text of a notebook in the stored form, from cells that are."""
    kernel = {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    notebook = {
        "cells": list(cells),
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def stream(name: str, *lines: str) -> dict:
    return {"name": name, "output_type": "stream", "text": list(lines)}


def code(number: int, name: str, source: str, outputs: list, **metadata) -> dict:
    return {
        "cell_type": "code",
        "execution_count": number,
        "id": name,
        "metadata": metadata,
        "outputs": outputs,
        "source": source.splitlines(keepends=True),
    }


def test_clean_undoes_what_jupyterlab_adds(root, capsys):
    picture = {
        "data": {"image/png": "iVBORw0KGgo=", "text/plain": ["<Figure>"]},
        "metadata": {},
        "output_type": "display_data",
    }
    text = {"cell_type": "markdown", "id": "ch02-001", "metadata": {}}
    text["source"] = ["# Wörter\n", "\n", "> Promise."]
    folded = {"jupyter": {"source_hidden": True}, "tags": ["nbval-ignore-output"]}
    streams = [stream("stdout", "a\n", "b\n"), stream("stderr", "c"), picture]
    cells = [
        text,
        code(1, "ch02-002", "1", [], **folded),
        code(2, "ch02-003", "print()\nplot()", [*streams, stream("stdout", "d")]),
    ]
    clean = stored(*cells)

    edited = json.loads(clean)
    edited["metadata"]["language_info"]["version"] = "3.11.9"
    edited["metadata"]["toc-autonumbering"] = True
    heading, hidden, plot = edited["cells"]
    heading["metadata"] = {
        "editable": True,
        "slideshow": {"slide_type": ""},
        "tags": [],
    }
    heading["source"] = "".join(heading["source"]) + "\n"
    hidden["metadata"]["jupyter"]["outputs_hidden"] = True
    hidden["metadata"]["execution"] = {"iopub.status.busy": "2020-01-01T00:00:00Z"}
    plot["metadata"] = {"scrolled": True, "jupyter": {"source_hidden": False}}
    plot["outputs"][2]["metadata"]["needs_background"] = "light"
    plot["outputs"][:1] = [
        stream("stdout", "a\n"),
        stream("stdout", "b"),
        stream("stdout", "\n"),
    ]
    path = root / "ch02_words/ch02_words.ipynb"
    path.parent.mkdir()
    path.write_text(json.dumps(edited), encoding="utf-8")

    assert run(root, "--clean") == 0
    assert path.read_bytes().decode() == clean
    assert run(root, "--clean", "ch02_words") == 0
    assert path.read_bytes().decode() == clean
    done = "ch02_words: cleaned\nch02_words: is clean\n"
    assert capsys.readouterr() == (done, "")
    nbformat.validate(nbformat.read(path, as_version=4))


def test_clean_after_nbconvert(root, tmp_path):
    """A stored notebook that is executed and cleaned is as it was."""
    slow = "import sys, time\nfor n in range(3):\n    time.sleep(0.1)\n"
    bar = "    print(f'\\r{n + 1}/3', end='', file=sys.stderr, flush=True)"
    lines = "    print(n, flush=True)\nn"
    result = {
        "data": {"text/plain": ["2"]},
        "execution_count": 2,
        "metadata": {},
        "output_type": "execute_result",
    }
    text = stored(
        code(1, "ch02-001", slow + bar, [stream("stderr", "3/3")]),
        code(
            2, "ch02-002", slow + lines, [stream("stdout", "0\n", "1\n", "2\n"), result]
        ),
    )
    path = root / "ch02_words/ch02_words.ipynb"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "nbconvert", "--to=notebook", "--execute"]
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(tmp_path / "settings")}
    subprocess.run([*command, "--inplace", path], check=True, env=environment)
    assert path.read_text(encoding="utf-8") != text
    assert run(root, "--clean", str(path)) == 0
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (["\r  0%", "\r 50%", "\r100%\n", "\r  0%\r100%", "\nend"], "100%\n100%\nend"),
        (["one\r\n", "two"], "one\ntwo"),
        (["\r100%", "\r    \r"], ""),
    ],
)
def test_a_progress_bar_is_cleaned_to_its_last_state(root, written, kept):
    path = save(root, "ch02_words", "bar()")
    notebook = nbformat.read(path, as_version=4)
    pieces = [new_output("stream", name="stderr", text=text) for text in written]
    notebook.cells[1].outputs = pieces
    nbformat.write(notebook, path)
    assert run(root, "--clean") == 0
    outputs = nbformat.read(path, as_version=4).cells[1].outputs
    assert [output.text for output in outputs] == ([kept] if kept else [])


# -------------------------------------------------------------------------- our course


def copy_of_the_course(folder: Path) -> Path:
    shutil.copytree(COURSE / "shared", folder / "shared")
    for notebook in export.find_notebooks():
        (folder / notebook.parent.name).mkdir(exist_ok=True)
        shutil.copy(notebook, folder / notebook.parent.name)
    return folder.resolve()


def test_the_course_is_in_step_seen_from_anywhere(tmp_path):
    program = [sys.executable, *COMMAND.split()[1:], "--check"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    notebooks = export.find_notebooks()
    assert len(notebooks) >= 11
    assert done.stdout.splitlines() == [
        f"{path.stem}: shared/{export.topic_of(path)}.py is in step"
        for path in notebooks
    ]


def test_an_edited_module_is_shown_where_a_character_cannot_be(tmp_path):
    course = copy_of_the_course(tmp_path)
    text = module(course, "intro") + 'EDITED = "→"\n'
    (course / "shared/intro.py").write_text(text, encoding="utf-8")
    program = [sys.executable, *COMMAND.split()[1:], "--check", "ch01_intro"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(course)}
    done = subprocess.run(
        program, cwd=course, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert '\n-EDITED = "\\u2192"\n' in done.stdout
    assert done.stderr.endswith(f"not in step: run `{COMMAND} ch01_intro`\n")


def test_the_courses_notebooks_are_clean(tmp_path, capsys):
    course = copy_of_the_course(tmp_path)
    # The exercises too, but no reader's copy
    for notebook in filter(export.is_original, COURSE.glob("ch*/*.ipynb")):
        shutil.copy(notebook, course / notebook.parent.name)
        assert run(course, "--clean", notebook.stem) == 0
    assert "cleaned" not in capsys.readouterr().out


def test_an_edited_line_is_a_line_that_differs(tmp_path):
    """One word changed in JupyterLab, which writes the file in its own way."""
    course = copy_of_the_course(tmp_path)
    path = course / "ch01_intro/ch01_intro.ipynb"
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source = notebook.cells[0].source.replace(
        "# Chapter", "# CHAPTER"
    )
    notebook.metadata.language_info.version = "3.14.0"
    for cell in notebook.cells:
        cell.metadata.editable = True
    nbformat.write(notebook, path)
    assert run(course, "--clean", "ch01_intro") == 0
    after = path.read_text(encoding="utf-8")
    lines = difflib.unified_diff(before.split("\n"), after.split("\n"), n=0)
    assert [line[0] for line in list(lines)[3:]] == ["-", "+"]


def test_checking_and_cleaning_exclude_each_other(root, capsys):
    path = save(root, "ch02_words", "1")
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="2"):
        run(root, "--check", "--clean")
    assert "not allowed with argument" in capsys.readouterr().err
    assert path.read_bytes() == before
