"""`shared/export.py`: notebooks become modules, and the two are proven to be in step.

The notebooks here are small ones built with nbformat; the last tests take the real checkout.
"""

import ast
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from shared import export

REPOSITORY = Path(__file__).resolve().parent.parent
HERE = "ch02_words/ch02_words.ipynb"  # the notebook most tests are about
RUFF = functools.cache(export._ruff)  # most tests format the same few cells again and again
DEFAULT = "#| default_exp {topic}\nimport math"
NOT_A_NOTEBOOK = (
    "is not a notebook chNN_<topic>.ipynb in a folder ch* of the course, with a topic of its own"
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty course: a folder that holds `shared/`."""
    monkeypatch.setattr(export, "_ruff", RUFF)
    course = tmp_path / "course"
    (course / "shared").mkdir(parents=True)
    return course


def save(root: Path, name: str, *cells: str, promise: str = "> Counts words.") -> Path:
    """Write notebook `name` ("ch02_words", or with a folder before it) with these code cells.

    The first code cell, with `#| default_exp` alone, is put before them: the first of `cells` is
    code cell 2.
    """
    path = root / (name if "/" in name else f"{name}/{name}")
    path = path.with_suffix(".ipynb")
    first = DEFAULT.format(topic=path.stem.partition("_")[2])
    return save_cells(path, [first, *cells], promise)


def save_cells(path: Path, sources: list[str], promise: str = "> Counts words.") -> Path:
    cells = [new_markdown_cell(f"# Title\n\n{promise}\n\nMore text.")]
    for source in sources:
        cells += [new_markdown_cell("Why:\n\n> Not the promise."), new_code_cell(source)]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


def shared(root: Path, topic: str) -> Path:
    return root / "shared" / f"{topic}.py"


def body(text: str) -> str:
    """What a module holds behind its docstring."""
    return text.split('edit the notebook, not this file.\n"""\n', 1)[1]


def run(root: Path, *arguments: str) -> int:
    return export.main(list(arguments), root)


# ------------------------------------------------------------------------------ what is written


def test_the_whole_module_byte_for_byte(root: Path) -> None:
    """One module worked out by hand: order, imports, comments, blank lines, formatting."""
    save(
        root,
        "ch02_words",
        "#| export\n"
        "import re\n"
        "from collections import Counter\n"
        "\n"
        "# One word.\n"
        "WORD = re.compile(r'\\w+')\n",
        "#| export\nimport re",
        "print('not exported')",
        "#| export\n"
        "import math\n"
        "import re\n"
        "from collections.abc import Iterable\n"
        "from collections import Counter, OrderedDict as Ordered\n"
        "\n"
        "def count(texts: Iterable[str]) -> Counter[str]:\n"
        '    """Count words."""\n'
        "    counts = Counter()\n"
        "\n"
        "    for text in texts:  # one by one\n"
        "        counts.update(WORD.findall( text ))\n"
        "    return counts\n"
        "\n"
        "_CACHE = Ordered()\n"
        "class Table:\n"
        "    size = math.inf",
    )
    assert run(root) == 0
    assert shared(root, "words").read_bytes().decode() == (
        '"""Counts words.\n'
        "\n"
        "Generated from ch02_words/ch02_words.ipynb by `python -m shared.export`;\n"
        "edit the notebook, not this file.\n"
        '"""\n'
        "\n"
        "import math\n"
        "import re\n"
        "from collections import Counter\n"
        "from collections import OrderedDict as Ordered\n"
        "from collections.abc import Iterable\n"
        "\n"
        '__all__ = ["WORD", "count", "Table"]\n'
        "\n"
        "# One word.\n"
        'WORD = re.compile(r"\\w+")\n'
        "\n"
        "\n"
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
        "class Table:\n"
        "    size = math.inf\n"
    )


def test_the_order_is_the_notebooks(root: Path) -> None:
    path = save(root, "ch02_words", "#| export\nB = 1", "#| export\nA = B", "#| export\nC = A")
    text = export.export_notebook(path, root)
    assert '__all__ = ["B", "A", "C"]' in text
    assert text.index("B = 1") < text.index("A = B") < text.index("C = A")


@pytest.mark.parametrize("directive", ["#| export", "#|export", "# | export", "#|  export  "])
def test_spacing_of_the_directive(root: Path, directive: str) -> None:
    path = save(root, "ch02_words", f"{directive}\nA = 1")
    assert body(export.export_notebook(path, root)) == '\n__all__ = ["A"]\n\nA = 1\n'


def test_first_code_cell_may_be_exported(root: Path) -> None:
    path = root / "ch02_words/ch02_words.ipynb"
    save_cells(path, ["#|default_exp words\n#| export\nA = 1", "B = 2"])
    text = export.export_notebook(path, root)
    assert "A = 1" in text and "B = 2" not in text and "#|" not in text


def test_a_notebook_that_exports_nothing_gives_an_empty_module(root: Path) -> None:
    path = save(root, "ch02_words", "A = 1")
    assert body(export.export_notebook(path, root)) == "\n__all__ = []\n"


def test_imports_are_gathered_grouped_and_future_comes_first(root: Path) -> None:
    path = save(
        root,
        "ch02_words",
        "#| export\nimport torch  # the tensors\nA = torch.e",
        "#| export\n"
        "from __future__ import annotations\n"
        "import regex\n"
        "from shared.fetch import (\n    fetch,  # a comment inside is dropped\n    verify,\n)\n"
        "import os.path, sys  # two of them\n"
        "B = regex, fetch, verify, os.path, sys",
        "#| export\nimport torch\nC: torch.Tensor\nD = torch",
    )
    assert body(export.export_notebook(path, root)) == (
        "\nfrom __future__ import annotations\n"
        "\n"
        "import os.path  # two of them\n"
        "import sys\n"
        "\n"
        "import regex\n"
        "import torch  # the tensors\n"
        "\n"
        "from shared.fetch import fetch, verify\n"
        "\n"
        '__all__ = ["A", "B", "D"]\n'
        "\n"
        "A = torch.e\n"
        "\n"
        "B = regex, fetch, verify, os.path, sys\n"
        "\n"
        "C: torch.Tensor\n"
        "D = torch\n"
    )


def test_text_that_looks_like_an_import_or_a_comment_stays(root: Path) -> None:
    """Lines are taken out by what they mean, not by how they look."""
    path = save(
        root,
        "ch02_words",
        '#| export\nA = """\nimport os\n# not a comment"""\nimport math\nB = math.pi\n'
        "def f():\n    import json\n    return json",
    )
    module = ast.parse(export.export_notebook(path, root))
    values = {
        node.targets[0].id: node.value for node in module.body if isinstance(node, ast.Assign)
    }
    assert ast.literal_eval(values["A"]) == "\nimport os\n# not a comment"
    assert ast.unparse(module.body[-1]) == "def f():\n    import json\n    return json"


@pytest.mark.parametrize(
    ("promise", "docstring"),
    [
        ("> Counts words.", "Counts words."),
        (">Counts words.  ", "Counts words."),
        ("> First line.\n> Second line.", "First line."),
        ("> A **bold *and* plain** _word_, `code_with_x` ", "A bold and plain word, code_with_x"),
        (
            "> **`__init__`** and snake_case_name, 2 * 3 * 4",
            "__init__ and snake_case_name, 2 * 3 * 4",
        ),
        ("> See [the *paper*](https://a.b/c_d_e).", "See the paper."),
        ('> A path C:\\new, a "quote" and """three', 'A path C:\\new, a "quote" and """three'),
        ("> Ends with é → ✓", "Ends with é → ✓"),
    ],
)
def test_docstring_is_the_promise_in_plain_text(root: Path, promise: str, docstring: str) -> None:
    path = save(root, "ch02_words", "#| export\nA = 1", promise=promise)
    first, empty, source, hint = ast.get_docstring(
        ast.parse(export.export_notebook(path, root))
    ).split("\n")
    assert (first, empty) == (docstring, "")
    assert source == "Generated from ch02_words/ch02_words.ipynb by `python -m shared.export`;"
    assert hint == "edit the notebook, not this file."


def test_a_long_promise_is_wrapped(root: Path) -> None:
    path = save(root, "ch02_words", promise="> " + "many words " * 20)
    text = export.export_notebook(path, root)
    assert max(map(len, text.split("\n"))) <= 100
    assert ast.get_docstring(ast.parse(text)).replace("\n", " ").startswith("many words " * 20)


@pytest.mark.parametrize(
    "signature", ["argv=None", "argv: list[str] | None = None", "*, argv=None"]
)
def test_main_gets_its_guard_and_runs(root: Path, signature: str) -> None:
    save(
        root,
        "ch02_words",
        f"#| export\ndef main({signature}):\n    print('ran', argv)\n    return 3",
    )
    assert run(root) == 0
    module = shared(root, "words")
    assert module.read_text().endswith('\n\nif __name__ == "__main__":\n    sys.exit(main())\n')
    assert "\nimport sys\n" in module.read_text()
    ran = subprocess.run([sys.executable, module], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (3, "ran None\n")


@pytest.mark.parametrize(
    "code",
    ["def main(x=1):\n    return x", "class A:\n    def main(self, argv=None):\n        pass"],
)
def test_no_guard_without_a_main_for_the_command_line(root: Path, code: str) -> None:
    path = save(root, "ch02_words", f"#| export\n{code}")
    text = export.export_notebook(path, root)
    assert "__main__" not in text and "import sys" not in text


def test_nothing_is_executed_or_imported(root: Path) -> None:
    marker = root / "executed"
    touch = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    save(
        root, "ch02_words", touch, f"#| export\nimport no_such_module\nA = no_such_module, {touch}"
    )
    assert run(root) == 0
    assert not marker.exists()


# ------------------------------------------------------------------------------ same bytes


def test_same_bytes_twice_and_an_unchanged_module_is_not_touched(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_ruff", RUFF.__wrapped__)
    save(root, "ch02_words", "#| export\nA = 1")
    assert run(root) == 0
    module = shared(root, "words")
    os.utime(module, ns=(10**18, 10**18))
    before = module.read_bytes(), module.stat()
    assert run(root) == 0
    assert module.read_bytes() == before[0]
    assert (module.stat().st_mtime_ns, module.stat().st_ino) == (10**18, before[1].st_ino)
    assert [path.name for path in (root / "shared").iterdir()] == ["words.py"]  # nothing temporary


def test_outputs_counts_tags_and_ids_do_not_matter(root: Path) -> None:
    path = save(root, "ch02_words", "#| export\nA = 1", "A")
    before = export.export_notebook(path, root)
    notebook = nbformat.read(path, as_version=4)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"other-{number}"
        if cell.cell_type == "code":
            cell.execution_count = 40 + number
            cell.outputs = [new_output("stream", text="another output\n")]
            cell.metadata.tags = ["nbval-ignore-output"]
    nbformat.write(notebook, path)
    assert export.export_notebook(path, root) == before


@pytest.mark.parametrize("ending", ["\r\n", "\r"])
def test_line_endings_do_not_matter(root: Path, ending: str) -> None:
    path = save(root, "ch02_words", '#| export\nA = """\nx"""\nB = 1')
    before = export.export_notebook(path, root)
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("\n", ending)
    nbformat.write(notebook, path)
    assert export.export_notebook(path, root) == before

    assert run(root) == 0
    module = shared(root, "words")
    assert b"\r" not in module.read_bytes()
    module.write_bytes(module.read_bytes().replace(b"\n", b"\r\n"))  # as git may check it out
    assert run(root, "--check") == 0


def test_a_readers_ruff_settings_do_not_matter(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_ruff", RUFF.__wrapped__)
    code = "import torch, regex\nfrom shared.fetch import fetch\nA = 'a', torch, regex, fetch"
    path = save(root, "ch02_words", f"#| export\n{code}")
    before = export.export_notebook(path, root)
    folder = root / "elsewhere"
    (folder / "torch").mkdir(parents=True)  # ruff would take torch for one of our own packages
    (folder / "ruff.toml").write_text(
        "line-length = 20\n"
        "[format]\n"
        "quote-style = 'single'\n"
        "[lint.isort]\n"
        "force-single-line = true\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RUFF_OUTPUT_FORMAT", "github")
    monkeypatch.setenv("RUFF_OUTPUT_FILE", str(root / "report"))
    assert export.export_notebook(path, root) == before


# ------------------------------------------------------------------------------ --check


def test_check_is_green_when_in_step(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(root, "ch02_words", "#| export\nA = 1")
    save(root, "ch01_intro", "#| export\nA = 1")
    assert run(root) == 0
    assert capsys.readouterr().out == (
        "ch01_intro: wrote shared/intro.py\nch02_words: wrote shared/words.py\n"
    )
    assert run(root, "--check") == 0
    assert capsys.readouterr() == (
        "ch01_intro: shared/intro.py is in step\nch02_words: shared/words.py is in step\n",
        "",
    )


def test_check_shows_a_changed_module(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(root, "ch02_words", "#| export\nA = 1")
    save(root, "ch03_more", "#| export\nA = 1")
    run(root)
    module = shared(root, "words")
    edited = module.read_text().replace("A = 1", "A = 2")
    module.write_text(edited)
    capsys.readouterr()
    assert run(root, "--check") == 1
    out, err = capsys.readouterr()
    assert "--- shared/words.py\n" in out and "\n-A = 2\n+A = 1\n" in out
    assert "ch03_more: shared/more.py is in step\n" in out
    assert err == f"shared/words.py is not in step: run `python -m shared.export {HERE}`\n"
    assert module.read_text() == edited  # --check writes nothing


@pytest.mark.parametrize("edit", [lambda text: text[:-1], lambda text: text + "\n"])
def test_check_sees_a_changed_end_of_file(root: Path, edit) -> None:
    save(root, "ch02_words", "#| export\nA = 1")
    run(root)
    module = shared(root, "words")
    module.write_text(edit(module.read_text()))
    assert run(root, "--check") == 1


def test_check_shows_a_changed_notebook(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(root, "ch02_words", "#| export\nA = 1")
    run(root)
    save(root, "ch02_words", "#| export\nA = 3")
    assert run(root, "--check") == 1
    assert "\n-A = 1\n+A = 3\n" in capsys.readouterr().out
    assert run(root) == 0 and run(root, "--check") == 0


def test_check_shows_a_missing_module(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(root, "ch02_words", "#| export\nA = 1")
    assert run(root, "--check") == 1
    assert "\n+A = 1\n" in capsys.readouterr().out
    assert not shared(root, "words").exists()


def test_module_whose_notebook_is_gone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(root, "ch01_intro", "#| export\nA = 1")
    gone = save(root, "ch02_words", "#| export\nB = 1")
    run(root)
    shared(root, "fetch").write_text('"""Written by hand."""\n')
    assert run(root, "--check") == 0
    gone.unlink()
    capsys.readouterr()
    assert run(root, "--check") == 1
    out, err = capsys.readouterr()
    assert out == "ch01_intro: shared/intro.py is in step\n"
    message = "shared/words.py has no notebook; delete it\n"
    assert err == message
    assert run(root) == 1  # the command says so too, and leaves the deleting to the reader
    assert capsys.readouterr().err == message
    assert shared(root, "words").exists()
    assert run(root, "--check", "ch01_intro/ch01_intro.ipynb") == 0  # asked about another one


def test_a_course_without_notebooks_is_not_green(root: Path) -> None:
    assert run(root, "--check") == 1


# ------------------------------------------------------------------------------ which notebooks


def test_a_single_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder: relative to it, relative to the root, absolute."""
    first = save(root, "ch01_intro", "#| export\nA = 1")
    save(root, "ch02_words", "#| export\nA = 1")
    monkeypatch.chdir(first.parent)
    for argument in ("ch01_intro.ipynb", "ch01_intro/ch01_intro.ipynb", str(first)):
        shared(root, "intro").unlink(missing_ok=True)
        assert run(root, "--check", argument) == 1
        assert run(root, argument) == 0
        assert run(root, "--check", argument) == 0
        assert [path.name for path in (root / "shared").iterdir()] == ["intro.py"]


@pytest.mark.parametrize(
    "argument", ["ch02_words/ch02_none.ipynb", "elsewhere/ch02_words.ipynb", "shared/words.py"]
)
def test_a_path_that_is_no_notebook_of_the_course(
    root: Path, capsys: pytest.CaptureFixture[str], argument: str
) -> None:
    save(root, "ch02_words", "#| export\nA = 1")
    save(root, "elsewhere/ch02_words", "#| export\nA = 1")
    assert run(root, argument) == 1
    assert capsys.readouterr().err == f"{argument}: {NOT_A_NOTEBOOK}\n"
    assert not list((root / "shared").iterdir())


def test_exercises_and_checkpoints_are_skipped(root: Path) -> None:
    save(root, "ch02_words", "#| export\nA = 1")
    save(root, "ch02_words/ch02_words_exercises", "#| export\nthis is not Python")
    (root / "ch02_words/.ipynb_checkpoints").mkdir()
    shutil.copy(
        root / "ch02_words/ch02_words.ipynb",
        root / "ch02_words/.ipynb_checkpoints/ch02_words-checkpoint.ipynb",
    )
    assert run(root) == 0
    assert [path.name for path in (root / "shared").iterdir()] == ["words.py"]


def test_reading_order(root: Path) -> None:
    """By chapter; the notebook its folder is named after comes first."""
    for name in ("ch05_b/ch05_a", "ch05_b/ch05_b", "ch05_b/ch05_c", "ch04_z/ch04_z"):
        save(root, name)
    assert [path.stem for path in export.find_notebooks(root)] == [
        "ch04_z",
        "ch05_b",
        "ch05_a",
        "ch05_c",
    ]


# ------------------------------------------------------------------------------ refusals


def refusals(root: Path, *cells: str) -> list[str]:
    """What is refused in ch02_words, with notebooks around it; its old module must survive."""
    for name in ("ch01_intro", "ch02_words/ch02_next", "ch03_later"):
        save(root, name, "#| export\nA = 1")
    path = save(root, "ch02_words", *cells)
    module = shared(root, "words")
    module.write_text("OLD = 1\n")
    os.utime(module, ns=(10**18, 10**18))
    with pytest.raises(export.ExportError) as caught:
        export.export_notebook(path, root)
    assert run(root, HERE) == 1
    assert run(root, "--check", HERE) == 1
    assert (module.read_text(), module.stat().st_mtime_ns) == ("OLD = 1\n", 10**18)
    return str(caught.value).split("\n")


@pytest.mark.parametrize(
    ("code", "line", "message"),
    [
        # The cell is code cell 3, and `#| export` is its line 1.
        ("A = 1\n%matplotlib inline", 3, "IPython magic or shell command `%matplotlib inline`"),
        ("%%time\nA = 1", 2, "IPython magic or shell command `%%time`"),
        ("def f():\n    !ls", 3, "IPython magic or shell command `!ls`"),
        ("A = !ls", 2, "IPython magic or shell command `A = !ls`"),
        ("A = 1\nmath.sqrt?", 3, "IPython magic or shell command `math.sqrt?`"),
        ("?A", 2, "IPython magic or shell command `?A`"),
        ("A = 1\n\nB = = 2  # why?", 4, "syntax error: invalid syntax"),
        ("def f():\nreturn 1", 3, "syntax error: expected an indented block"),
        ("return 1", 2, "this would act when imported: `return 1`"),
        ("type Words = list[str]", 2, "syntax error: "),  # Python 3.12
        ('A = f"{"a"}"', 2, ""),  # Python 3.12
        ("A = 1\nA = 2", 3, "`A` is exported twice, first in code cell 3, line 2"),
        ("def OLD(): pass", 2, "`OLD` is exported twice, first in code cell 2, line 2"),
        ("class OLD: pass", 2, "`OLD` is exported twice, first in code cell 2, line 2"),
        ("(A, *OLD) = range(3)", 2, "`OLD` is exported twice, first in code cell 2, line 2"),
        ("OLD: int = 2", 2, "`OLD` is exported twice, first in code cell 2, line 2"),
        ("import shared.later", 2, "`shared.later` is not an earlier module of the course"),
        ("import shared.later as x", 2, "`shared.later` is not an earlier module of the course"),
        (
            "A = 1\nfrom shared.later import A as B",
            3,
            "`shared.later` is not an earlier module of the course",
        ),
        (
            "from shared import intro, later",
            2,
            "`shared.later` is not an earlier module of the course",
        ),
        (
            "from shared import (\n    next,\n)",
            2,
            "`shared.next` is not an earlier module of the course",
        ),
        (
            "def f():\n    x = 1\n    import shared.later",
            4,
            "`shared.later` is not an earlier module of the course",
        ),
        (
            "from shared.words import OLD",
            2,
            "`shared.words` is not an earlier module of the course",
        ),
        (
            "from shared.nowhere import x",
            2,
            "`shared.nowhere` is not an earlier module of the course",
        ),
        ("import shared", 2, "`shared` is not an earlier module of the course"),
        ("from .intro import A\nB = A", 2, "Prefer absolute imports"),
        ("def f():\n    from . import intro\n    intro", 3, "Prefer absolute imports"),
        ("A = 1\nfrom math import *", 3, "`from math import *` used"),
        ("import re; A = re", 2, "Multiple statements on one line"),
        ("A = 1; import re\nB = re", 2, "Multiple statements on one line"),
        (
            "def main(argv=None): pass\nif __name__ == '__main__':\n    main()",
            3,
            "this would act when imported: `if __name__ == '__main__':`",
        ),
        ("A = 1\nprint(A)", 3, "this would act when imported: `print(A)`"),
        ("A = 1\nA", 3, "this would act when imported: `A`"),
        (
            "A = []\nfor x in range(3):\n    A.append(x)",
            3,
            "this would act when imported: `for x in",
        ),
        ("A = 1\nif A:\n    B = 2", 3, "this would act when imported: `if A:`"),
        ("try:\n    import math\nfinally:\n    math", 2, "this would act when imported: `try:`"),
        ("A = [1]\nassert A", 3, "this would act when imported: `assert A`"),
        (
            "A = 1\ndef f():\n    return [\n        notebook_only]",
            5,
            "Undefined name `notebook_only`",
        ),
        ("def f(x: 'Unknown'): pass", 2, "Undefined name `Unknown`"),
        ("A = math.pi", 2, "Undefined name `math`"),  # imported in a cell that is not exported
        ("A = 1\nimport os.path, re\nB = re", 3, "`os.path` imported but unused"),
        ("import re  # noqa: F401", 2, "`re` imported but unused"),
        ("def f():\n    import re", 3, "`re` imported but unused"),
        ("A = 1\n#| export\nB = 1", 3, "`#| export`: only `#| export` in line 1 is known"),
        ("A = 1\n#|default_exp words", 3, "`#| default_exp words`: only `#| export` in line 1"),
    ],
)
def test_refused_code(root: Path, code: str, line: int, message: str) -> None:
    found = refusals(root, "#| export\nOLD = 1", f"#| export\n{code}")
    assert len(found) == 1
    assert found[0].startswith(f"{HERE}, code cell 3, line {line}: {message}")


@pytest.mark.parametrize(
    ("cell", "line", "message"),
    [
        ("\n#| export\nA = 1", 2, "`#| export`"),
        ("%%time\n#| export\nA = 1", 2, "`#| export`"),
        ("#| export words\nA = 1", 1, "`#| export words`"),
        ("#| exprot\nA = 1", 1, "`#| exprot`"),
        ("#| default_exp words\nA = 1", 1, "`#| default_exp words`"),
    ],
)
def test_refused_directives(root: Path, cell: str, line: int, message: str) -> None:
    assert refusals(root, "#| export\nOLD = 1", cell) == [
        f"{HERE}, code cell 3, line {line}: {message}: only `#| export` in line 1 is known"
    ]


@pytest.mark.parametrize(
    "first",
    [
        "import math",
        "import math\n#| default_exp words",
        "",
        "#| default_exp word",
        "#| default_exp",
    ],
)
def test_refused_default_exp(root: Path, first: str) -> None:
    path = save_cells(root / HERE, [first, "#| export\nA = 1"])
    with pytest.raises(export.ExportError) as caught:
        export.export_notebook(path, root)
    message = f"{HERE}, code cell 1, line 1: the first line must be `#| default_exp words`"
    assert message in str(caught.value).split("\n")


def test_all_refusals_of_all_notebooks_are_listed(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = refusals(root, "#| export\nprint()\n%magic", "#| export\nprint()\nimport shared.later")
    places = [line.removeprefix(f"{HERE}, ").partition(":")[0] for line in found]
    assert sorted(places) == [
        "code cell 2, line 3",
        "code cell 3, line 2",
        "code cell 3, line 3",
    ]
    save(root, "ch03_later", "#| export\nA = (")
    capsys.readouterr()
    assert run(root) == 1
    err = capsys.readouterr().err.split("\n")
    assert err[:-2] == found
    assert err[-2].startswith("ch03_later/ch03_later.ipynb, code cell 2, line 2: syntax error: ")


def test_the_others_are_written_when_one_is_refused(root: Path) -> None:
    """Partial success: status 1, old module untouched, new modules of the other notebooks."""
    refusals(root, "#| export\n!ls")
    save(root, "ch01_intro", "#| export\nNEW = 1")
    save(root, "ch03_later", "#| export\nfrom shared.intro import NEW\nNEWER = NEW")
    assert run(root) == 1
    assert "NEW = 1" in shared(root, "intro").read_text()
    assert "OLD = 1" in shared(root, "words").read_text()
    assert "NEWER = NEW" in shared(root, "later").read_text()


def test_imports_that_are_allowed(root: Path) -> None:
    """Earlier chapters, earlier notebooks of the chapter, modules written by hand."""
    save(root, "ch04_a", "#| export\nA = 1")
    save(root, "ch05_pretraining", "#| export\nA = 1")
    path = save(
        root,
        "ch05_pretraining/ch05_pretrained_weights",
        "#| export\nimport shared.a as a\nfrom shared import fetch, tiny_tales, pretraining\n"
        "from shared.export import ROOT\nA = a, fetch, tiny_tales, pretraining, ROOT",
    )
    assert "from shared import fetch, pretraining, tiny_tales\n" in export.export_notebook(
        path, root
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"<<<<<<< HEAD\n{}",
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": 3}',
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "x"}]}',
        b'{"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": []}',
    ],
)
def test_what_is_not_a_notebook_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = save(root, "ch02_words", "#| export\nA = 1")
    save(root, "ch03_later", "#| export\nA = 1")
    assert run(root, HERE) == 0
    before = shared(root, "words").read_bytes()
    path.write_bytes(content)
    capsys.readouterr()
    assert run(root) == 1
    out, err = capsys.readouterr()
    assert out == "ch03_later: wrote shared/later.py\n"
    assert err.startswith(f"{HERE}: cannot be read as a notebook: ") and err.count("\n") == 1
    assert shared(root, "words").read_bytes() == before


@pytest.mark.parametrize("promise", ["No promise.", ">", "Text > text."])
def test_a_notebook_without_a_promise_is_refused(root: Path, promise: str) -> None:
    path = save(root, "ch02_words", "#| export\nA = 1", promise=promise)
    with pytest.raises(
        export.ExportError, match=rf"^{HERE}: the first markdown cell has no `> ` line"
    ):
        export.export_notebook(path, root)


def test_two_notebooks_with_one_topic_are_both_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(root, "ch02_words", "#| export\nA = 1")
    save(root, "ch05_other/ch05_words", "#| export\nA = 2")
    assert run(root) == 1
    assert capsys.readouterr().err.split("\n")[:-1] == [
        f"{HERE}: {NOT_A_NOTEBOOK}",
        f"ch05_other/ch05_words.ipynb: {NOT_A_NOTEBOOK}",
    ]
    assert not shared(root, "words").exists()


@pytest.mark.parametrize("name", ["ch2_words", "ch02_words-Copy1", "ch02_fetch"])
def test_names_that_are_refused(root: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    save(root, name, "#| export\nA = 1")
    shared(root, "fetch").write_text('"""Written by hand."""\n')
    assert run(root) == 1
    assert capsys.readouterr().err == f"{name}/{name}.ipynb: {NOT_A_NOTEBOOK}\n"
    assert [path.read_text() for path in (root / "shared").iterdir()] == [
        '"""Written by hand."""\n'
    ]


def test_a_failed_write_leaves_the_old_module_and_nothing_beside_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(root, "ch02_words", "#| export\nA = 1")
    export.write(path, root)
    before = shared(root, "words").read_bytes()
    save(root, "ch02_words", "#| export\nA = 2")

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        export.write(path, root)
    assert [file.read_bytes() for file in (root / "shared").iterdir()] == [before]


# ------------------------------------------------------------------------------ the real course


def test_the_repository_is_in_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["--check"]) == 0, capsys.readouterr()
    lines = capsys.readouterr().out.split("\n")[:-1]
    assert len(lines) == len(export.find_notebooks(REPOSITORY)) >= 1
    assert all(line.endswith(" is in step") for line in lines)


def test_a_hand_edited_module_turns_the_check_red(tmp_path: Path) -> None:
    """In a copy of the checkout, with one line of one module added; the others stay in step."""
    shutil.copytree(REPOSITORY / "shared", tmp_path / "shared")
    notebooks = export.find_notebooks(REPOSITORY)
    assert notebooks
    for notebook in notebooks:
        (tmp_path / notebook.parent.name).mkdir(exist_ok=True)
        shutil.copy(notebook, tmp_path / notebook.parent.name)
    topic = export.topic_of(notebooks[0])
    module = tmp_path / "shared" / f"{topic}.py"
    module.write_text(module.read_text(encoding="utf-8") + 'EDITED = "→"\n', encoding="utf-8")

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONIOENCODING"] = "ascii"  # a console that cannot show the arrow
    red = subprocess.run(
        [sys.executable, "-m", "shared.export", "--check"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert red.returncode == 1
    assert '\n-EDITED = "\\u2192"\n' in red.stdout
    assert red.stdout.count(" is in step\n") == len(notebooks) - 1
    label = f"{notebooks[0].parent.name}/{notebooks[0].name}"
    advice = f"run `python -m shared.export {label}`"
    assert red.stderr == f"shared/{topic}.py is not in step: {advice}\n"
