"""The package `shared` stays small, clean and importable without side effects."""

import ast
import doctest
import importlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import house
import matplotlib as mpl
import pytest
from code_lines import lines_of_code
from readme_command import readme_command

from shared.support import COURSE
from shared.support.export import is_original

LESSONS = sorted(p for p in (COURSE / "shared").glob("*.py") if p.stem != "__init__")
SUPPORT = sorted((COURSE / "shared" / "support").glob("*.py"))
MOST_LESSON_LINES, MOST_SUPPORT_LINES, MOST_NAMES = 2_300, 1_000, 130
MOST_PAGE_LINES = 400  # HTML and JavaScript


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(COURSE).with_suffix("").parts)


def public_names(path: Path) -> list[str]:
    return list(importlib.import_module(module_name(path)).__all__)


def notebook_of(path: Path) -> Path:
    found = COURSE.glob(f"ch*/ch??_{path.stem}.ipynb")
    (notebook,) = filter(is_original, found)  # and no reader's copy
    return notebook


def exports_table(path: Path) -> str:
    """Return the section `What this chapter exports` of a module's notebook."""
    cells = json.loads(notebook_of(path).read_text(encoding="utf-8"))["cells"]
    prose = "\n".join(
        "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"
    )
    return re.split(r"^## ", prose.partition("## What this chapter exports")[2])[0]


def test_shared_is_small():
    sizes = {path.name: lines_of_code(path.read_text("utf-8")) for path in LESSONS}
    assert sum(sizes.values()) <= MOST_LESSON_LINES, sizes
    sizes = {path.name: lines_of_code(path.read_text("utf-8")) for path in SUPPORT}
    assert sum(sizes.values()) <= MOST_SUPPORT_LINES, sizes


def test_pages_are_small():
    pages = [*COURSE.glob("shared/support/*.html"), *COURSE.glob("ch??_*/*.html")]
    assert sum(len(p.read_text("utf-8").splitlines()) for p in pages) <= MOST_PAGE_LINES


def test_a_reader_can_hold_the_names():
    names = {path.name: len(public_names(path)) for path in LESSONS}
    assert sum(names.values()) <= MOST_NAMES, names


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_chapters_table_names_what_it_exports(path):
    table = exports_table(path).partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(public_names(path))


def test_the_counter_counts():
    function = 'def f():\n    """Doc\n    more."""\n    return x'
    sample = f'"""Doc."""\n\n# comment\nx = 1\n\n\n{function}'
    assert lines_of_code(sample) == 3


def test_importing_prints_and_downloads_nothing(tmp_path):
    names = [module_name(path) for path in [*LESSONS, *SUPPORT]]
    code = f"import importlib\nfor name in {names}: importlib.import_module(name)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={
            "PATH": "",
            "HOME": str(tmp_path),
            "LLM_COURSE_CACHE": str(tmp_path / "cache"),
            "MPLCONFIGDIR": mpl.get_cachedir(),  # of fonts; making it may take long
        },
        cwd=COURSE,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert not (tmp_path / "cache").exists()


def imported_lessons(source: str, everywhere: bool) -> set[str]:
    """Return the lesson modules that a module imports: at its top, or everywhere."""
    tree = ast.parse(source)
    nodes = ast.walk(tree) if everywhere else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
            found |= {part for part in parts if part.startswith("shared.")}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("shared.")}
    lessons = {module_name(path) for path in LESSONS}
    return found & lessons


@pytest.mark.parametrize("path", SUPPORT, ids=lambda path: path.stem)
def test_support_needs_no_lesson_to_be_imported(path):
    assert not imported_lessons(path.read_text("utf-8"), everywhere=False)


def test_public_names_have_docstrings():
    for path in [*LESSONS, *SUPPORT]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            public = isinstance(node, ast.ClassDef | ast.FunctionDef)
            if public and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_every_block_names_the_section_that_explains_it():
    for path in LESSONS:
        sections = re.findall(r"^# Section (\d\.\d+): ", path.read_text("utf-8"), re.M)
        assert sections, path.name
        assert sections == sorted(sections, key=lambda s: int(s.split(".")[1]))


def test_doctests_hold():
    examples = 0
    for path in [*LESSONS, *SUPPORT]:
        result = doctest.testmod(importlib.import_module(module_name(path)))
        assert result.failed == 0, path.name
        examples += result.attempted
    assert examples > 0


def test_the_house_is_described_as_it_is():
    page = (COURSE / ".site" / "contributing.md").read_text(encoding="utf-8")
    assert f"\n\n{house.table()}\n\n" in page


def test_the_container_does_what_the_readme_says():
    path = COURSE / ".devcontainer" / "devcontainer.json"
    container = json.loads(path.read_text(encoding="utf-8"))
    readme = (COURSE / "README.md").read_text(encoding="utf-8")
    first, *rest = container["onCreateCommand"].split(" && ")
    assert f"\n{first} && {rest[0]}\n```" in readme  # PyTorch's small build
    install = f"{first} && {rest[1]} && "
    assert len(rest) == 2 and readme_command("open").startswith(install)


def test_the_cover_shows_what_the_notebooks_print(monkeypatch):
    monkeypatch.syspath_prepend(COURSE / ".site")
    cover = runpy.run_path(str(COURSE / ".site" / "cover.py"))
    stored = (COURSE / ".site" / "cover.svg").read_text(encoding="utf-8")
    assert cover["draw"]() == stored, "run python .site/cover.py"


def test_no_arrow_leads_back_up():
    order = [topic for _, topic in house.reading_order()]
    for n, topic in enumerate(order):
        assert house.imports_of(topic) <= set(order[:n]), topic
