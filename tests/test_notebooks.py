"""Every notebook, read as data, keeps the rules: good to read, safe to re-run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from code_lines import lines_of_code
from nbformat.v4 import new_code_cell, new_notebook, new_output

from shared.support.export import exports, is_original

ROOT = Path(__file__).resolve().parent.parent
# A reader's copies count in CI only.
NOTEBOOKS = [
    path
    for path in sorted(ROOT.glob("ch*/*.ipynb"))
    if is_original(path) or os.environ.get("CI") == "true"
]
FIGURES = sorted({f for path in NOTEBOOKS for f in path.parent.glob("figures/*.svg")})
PLAIN_CELL, DEFINING_CELL = 15, 45  # most lines of code in a cell
# Exercises have no figure and no summary, and a learner may have written into them.
EXERCISES = [path for path in NOTEBOOKS if path.stem.endswith("_exercises")]
LARGEST_NOTEBOOK = 1.5 * 2**20  # bytes
COLORS = {"#0072B2", "#009E73", "#E69F00", "#D55E00"}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_figure = pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)


def cells_of(path: Path) -> list:
    return nbformat.read(path, as_version=4).cells


def code_cells(path: Path) -> list[tuple[int, nbformat.NotebookNode]]:
    return list(
        enumerate((c for c in cells_of(path) if c.cell_type == "code"), start=1)
    )


def tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def is_plain(source: str) -> bool:
    return not re.search(r"^(class|def|@)", source, re.MULTILINE)


def test_there_are_notebooks_and_figures():
    assert len(NOTEBOOKS) >= 2 and len(FIGURES) >= 2


def test_cell_ids_are_unique_in_the_course():
    ids = [cell.id for path in NOTEBOOKS for cell in cells_of(path)]
    assert len(ids) == len(set(ids)), {i for i in ids if ids.count(i) > 1}


@each_notebook
def test_code_cells_are_short(path):
    for number, cell in code_cells(path):
        limit = PLAIN_CELL if is_plain(cell.source) else DEFINING_CELL
        size = lines_of_code(cell.source)
        assert size <= limit, (
            f"code cell {number}: {size} lines of code, at most {limit}"
        )


@each_notebook
def test_outputs_are_compared(path):
    cells = code_cells(path)
    ignored = [n for n, cell in cells if "nbval-ignore-output" in tags(cell)]
    trains = path.stem[:4] in {"ch05", "ch06", "ch07"}
    share = 0.30 if trains or path.stem == "ch04_modern_parts" else 0.15
    assert len(ignored) <= share * len(cells), (
        f"{len(ignored)} of {len(cells)} are not compared"
    )
    by_number = dict(cells)
    for number in ignored:
        assert "assert" in by_number[number + 1].source, (
            f"code cell {number}: result unchecked"
        )
    for number, cell in cells:
        assert "nbval-skip" not in tags(cell), f"code cell {number} is skipped"
        assert not re.search(r"#\s*NBVAL_", cell.source), (
            f"code cell {number}: use a tag"
        )


@each_notebook
def test_notebook_is_small_and_its_figures_exist(path):
    assert path.stat().st_size <= LARGEST_NOTEBOOK
    prose = "\n".join(c.source for c in cells_of(path) if c.cell_type == "markdown")
    images = re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", prose)
    assert images or path in EXERCISES, "a chapter without a figure"
    assert "<img" not in prose, "use ![alt](file)"
    for alt, target in images:
        assert alt.strip(), f"{target} has no alt text"
        assert (path.parent / target).is_file(), (
            f"{target} is missing (remote images not allowed)"
        )


@each_figure
def test_figure_has_the_course_look(path):
    svg = path.read_text(encoding="utf-8")
    assert re.search(r"<svg[^>]*\bwidth=\"760\"", svg), "760 px wide"
    assert "viewBox" in svg and "<title" in svg and "sans-serif" in svg
    assert "<script" not in svg and 'href="http' not in svg
    assert COLORS & {color.upper() for color in re.findall(r"#[0-9a-fA-F]{6}\b", svg)}
    notebooks = [
        p.read_text(encoding="utf-8") for p in path.parent.parent.glob("*.ipynb")
    ]
    assert any(f"figures/{path.name}" in text for text in notebooks), (
        "a figure nobody shows"
    )


@each_notebook
def test_notebook_was_stored_from_a_full_run(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
    cells = notebook["cells"]
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    advice = (
        "the stored run is not one from top to bottom: "
        "Restart and Run All, or git restore it"
    )
    if path in EXERCISES and os.environ.get("CI") != "true":
        return  # it may be a learner's own
    assert counts == list(range(1, len(counts) + 1)), advice
    for cell in cells:
        hidden = {"source_hidden": True}
        stray = {k: v for k, v in cell["metadata"].items() if k != "tags"}
        assert stray in ({}, {"jupyter": hidden}), f"stray metadata: {stray}"
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error" or "raises-exception" in str(
                cell["metadata"]
            )
            assert output.get("name") != "stderr", f"stored warning: {output['text']}"
            text = json.dumps(
                {
                    k: v
                    for k, v in output.get("data", output).items()
                    if k != "image/png"
                }
            )
            assert not re.search(r"/(root|home|Users|tmp)/|C:\\\\", text), (
                "a machine's path"
            )


@each_notebook
def test_notebook_opens_and_ends_as_all_do(path):
    cells = cells_of(path)
    opening = cells[0].source
    assert opening.startswith("# ") and re.search(r"^> \S", opening, re.MULTILINE)
    for part in "**Know before you start:**", "**Time:**", "**Exports:**":
        assert part in opening
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    if path in EXERCISES:
        assert "**Exports:** nothing" in opening and cells[-1].source[:6] == "check."
        return
    endings = ["## Summary", "## What this chapter exports", "## Go further"]
    if not exports(path):
        endings = ["## Summary", "## Go further"]
        assert not [cell for cell in cells if cell.source.startswith("#|")]
    positions = [prose.index(heading) for heading in endings]
    assert positions == sorted(positions)
    sections = re.split(r"^## \d+\.\d+ ", prose, flags=re.MULTILINE)[1:]
    assert sections
    for section in sections:
        assert "**Question:**" in section and "**Answer:**" in section, section[:60]
    check = f'assert export.main(["--check", "{path.stem}"]) == 0'
    assert (
        not exports(path)
        or cells[-1].source == f"from shared.support import export\n\n{check}"
    )


# --- the suite in other environments --------------------------------------------------

FOREIGN = {
    "MPLBACKEND": "Agg", "PYTHONWARNINGS": "default", "PYTHONOPTIMIZE": "1",
    "OPENAI_API_KEY": "", "ALL_PROXY": "socks5://127.0.0.1:9", "LLM_COURSE_DEVICE": "",
    "LLM_COURSE_JUDGE": "http://127.0.0.1:9/v1", "JPY_SESSION_NAME": "x.ipynb",
}  # fmt: skip


def run_pytest(folder: Path, *arguments, **more: str) -> subprocess.CompletedProcess:
    """Run pytest in a folder and in an environment that is none of ours."""
    kept = {n: v for n, v in os.environ.items() if n not in {"CI", *FOREIGN}}
    wanted = {name: value for name, value in FOREIGN.items() if value or "KEY" in name}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=folder,
        env=kept | wanted | {"PYTHONPATH": str(ROOT)} | more,
        capture_output=True,
        text=True,
    )


def small_notebook(path: Path, *cells) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    code = [
        new_code_cell(source, outputs=outputs, execution_count=1)
        for source, outputs in cells
    ]
    nbformat.write(new_notebook(cells=code), path)
    return path


def test_the_environment_does_not_reach_a_notebook(tmp_path):
    """Run one by its path alone, so without tests/conftest.py, from another folder."""
    look = "import os\nprint(os.environ.get('LLM_COURSE_DEVICE'), __debug__)"
    look += "\nprint(os.environ.get('LLM_COURSE_JUDGE'))"
    seen = new_output("stream", name="stdout", text="cpu True\nNone\n")
    warning = "import warnings\nwarnings.warn('old', PendingDeprecationWarning)"
    plot = "import matplotlib.pyplot as plt\nplt.plot([1])\nplt.show()"
    data = {"image/png": "", "text/plain": "<Figure size 640x480 with 1 Axes>"}
    picture = new_output("display_data", data)
    path = small_notebook(
        tmp_path / "n.ipynb", (look, [seen]), (warning, []), (plot, [picture])
    )
    done = run_pytest(tmp_path, "-c", ROOT / "pyproject.toml", path)
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout


def test_copies_are_the_readers_own(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    cell = ('export.main(["--check", "ch01_intro"])', [])
    names = ["ch01_intro/ch01_intro", "ch01_intro/ch01_more"]
    copies = ["ch01_intro/ch01_intro-Copy1", "ch01_intro copy/ch01_intro"]
    copies += ["ch01_intro/mine", "ch01_intro/ch01_intro_mine"]
    copies += ["ch01_intro/ch01_my_exercises"]
    for name in [*names, *copies]:
        here = cell if name != names[1] else ("1", [])
        small_notebook(tmp_path / f"{name}.ipynb", here)

    def collected(*arguments, **more) -> set[str]:
        done = run_pytest(tmp_path, "--collect-only", *arguments, **more)
        return {
            line.partition(".ipynb::")[0]
            for line in done.stdout.splitlines()
            if "::" in line
        }

    assert collected() == set(names)
    assert collected("-m", "not slow") == {names[0]}
    assert collected(f"{copies[0]}.ipynb") == {copies[0]}
    assert collected(CI="true") == {*names, *copies}


@pytest.mark.slow
def test_a_chapters_folder_in_a_foreign_environment():
    done = run_pytest(ROOT / "ch01_intro")
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout
