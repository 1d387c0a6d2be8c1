"""The package `shared` stays small, clean and importable without side effects."""

import ast
import subprocess
import sys
from pathlib import Path

from code_lines import lines_of_code

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "shared").glob("*.py"))
MOST_LINES = 2_500


def without_constants(source: str) -> str:
    """Return `source` without its module-level assignments of literals."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            try:
                ast.literal_eval(node.value)
            except ValueError:
                continue
            lines[node.lineno - 1 : node.end_lineno] = [""] * (
                node.end_lineno - node.lineno + 1
            )
    return "\n".join(lines)


def test_shared_is_small():
    sources = {path.name: path.read_text(encoding="utf-8") for path in MODULES}
    # The rules of Tiny Tales are a story book, not code.
    sources["tiny_tales.py"] = without_constants(sources["tiny_tales.py"])
    sizes = {name: lines_of_code(source) for name, source in sources.items()}
    assert sum(sizes.values()) <= MOST_LINES, sizes


def test_the_counter_counts():
    function = 'def f():\n    """Doc\n    more."""\n    return x'
    sample = f'"""Doc."""\n\n# comment\nx = 1\n\n\n{function}'
    assert lines_of_code(sample) == 3
    function = "def f():\n    d = [\n        1]"
    data = f'A = {{"a": [1,\n  "x"]}}\nB = {{**A}}\nC = len("a")\n\n\n{function}'
    # B, C and f with what stands in it
    assert lines_of_code(without_constants(data)) == 5


def test_importing_prints_and_downloads_nothing(tmp_path):
    names = [f"shared.{path.stem}" for path in MODULES if path.stem != "__init__"]
    code = f"import importlib\nfor name in {names}: importlib.import_module(name)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={
            "PATH": "",
            "HOME": str(tmp_path),
            "LLM_COURSE_CACHE": str(tmp_path / "cache"),
        },
        cwd=ROOT,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert not (tmp_path / "cache").exists()


def test_public_names_have_docstrings():
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(
                node, ast.ClassDef | ast.FunctionDef
            ) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_doctests_hold():
    import doctest
    import importlib

    examples = 0
    for path in MODULES:
        if path.stem != "__init__":
            result = doctest.testmod(importlib.import_module(f"shared.{path.stem}"))
            assert result.failed == 0, path.name
            examples += result.attempted
    assert examples > 0
