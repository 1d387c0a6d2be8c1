"""Turn the `#| export` cells of each notebook into one module, or check that this has
been done.

    python -m shared.export                                        write every module
    python -m shared.export ch02_text_data/ch02_text_data.ipynb    write this notebook's
    module python -m shared.export --check                                write nothing,
    show what differs

The notebook is the only source: `chNN_<topic>.ipynb` becomes `shared/<topic>.py`, and a
module is never edited by hand. The first code cell of the notebook starts with `#|
default_exp <topic>`. A cell is copied if its first line is `#| export` (in the first
code cell: its second line).

Nothing in a notebook is executed. Cells are parsed with `ast`, and whatever could not
stand in a module is refused, with its notebook, cell and line. A refused notebook
leaves its module as it is. Cells are counted over the code cells from 1, lines within
the cell, directives included.
"""

import argparse
import ast
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HAND_WRITTEN = frozenset({"export", "fetch", "tiny_tales"})

DIRECTIVE = re.compile(r"#\s*\|\s*(\w[\w ]*?)\s*")
MAGIC = re.compile(r"[%!?]|[\w, ]+=\s*[%!]|[\w.*]+\?{1,2}$")
ORIGIN = 'Generated from {} by `python -m shared.export`;\nedit the notebook, not this file.\n"""'
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
MARKUP = re.compile(r"`+([^`]*)(?:`+|$)|(?<!\s)\*+|\*+(?!\s)|(?<!\w)_+|_+(?!\w)")

IMPORT = ast.Import | ast.ImportFrom
DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
QUIET = (
    IMPORT
    | DEFINITION
    | ast.Assign
    | ast.AnnAssign
    | ast.AugAssign
    | ast.Pass
    | ast.Raise
)

# `--isolated` and the explicit settings keep a reader's own configuration out of the
# result.
RUFF_OPTIONS = ["--isolated", "--quiet", "--line-length=88", "--target-version=py311"]
RUFF_OPTIONS += [
    "--config=src = []",
    '--config=lint.isort.known-first-party = ["shared"]',
]
# Undefined names, unused and wildcard imports, misplaced `return`, `;`, relative
# imports.
CHECKS = [
    "--select=F821,F401,F403,F7,E702,TID252",
    "--ignore-noqa",
    "--output-format=json",
]
CHECKS += [
    '--config=lint.flake8-tidy-imports.ban-relative-imports = "all"',
    "--exit-zero",
]


class ExportError(ValueError):
    """A notebook has not become a module; the message has one line for each reason."""


# ------------------------------------------------------------------------------ notebooks


def find_notebooks(root: Path) -> list[Path]:
    """List the notebooks below `root` that export a module, in reading order.

    The order is by chapter. Within a chapter, the notebook named like its folder comes
    first and the others follow by name: `ch05_pretraining`, then
    `ch05_pretrained_weights`. Notebooks of exercises (`*_exercises.ipynb`) export
    nothing and are left out.
    """
    found = [
        path
        for path in root.glob("ch*/ch*.ipynb")
        if not path.stem.endswith("_exercises")
    ]
    return sorted(
        found, key=lambda path: (path.stem[:4], path.stem != path.parent.name, path)
    )


def topic_of(path: Path) -> str:
    """Return the topic a notebook is named after, which names its module.

    >>> topic_of(Path("ch02_text_data/ch02_text_data.ipynb"))
    'text_data'
    """
    return path.stem.partition("_")[2]


def _label(path: Path) -> str:
    """Name a notebook the way messages and modules do: its folder and its file."""
    return f"{path.parent.name}/{path.name}"


def _read_sources(path: Path) -> dict[str, list[str]]:
    """Return the sources of a notebook's cells for each type of cell."""
    sources = {"markdown": [], "code": [], "raw": []}
    try:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            sources[cell["cell_type"]].append(
                re.sub(r"\r\n?", "\n", "".join(cell["source"]))
            )
    except (ValueError, KeyError, TypeError) as error:  # JSON, encoding, structure
        raise ExportError(
            f"{_label(path)}: cannot be read as a notebook: {error!r}"
        ) from error
    return sources


# ------------------------------------------------------------------------------ one module


class _Draft:
    """A module in the making: what the cells gave so far, and what had to be refused."""

    def __init__(self, path: Path, notebooks: list[Path]) -> None:
        self.label, self.topic = _label(path), topic_of(path)
        self.refusals: list[str] = []
        self.exported: list[
            tuple[str, int, int]
        ] = []  # each line, its cell and its number there
        self.imports: list[str] = []
        self.body: list[str] = []
        self.names: dict[
            str, tuple[int, ast.stmt]
        ] = {}  # public name -> its cell and statement
        self.cell = 0  # the number of the code cell that is being added
        topics = [topic_of(notebook) for notebook in notebooks]
        self.earlier = {*HAND_WRITTEN, *topics[: topics.index(self.topic)]}

    def need(self, right: object, line: int, message: str) -> None:
        """Unless it is `right`, note what cannot stand in a module, at a line of this
        cell.
        """
        if not right:
            self.refusals.append(
                f"{self.label}, code cell {self.cell}, line {line}: {message}"
            )

    def add_cell(self, source: str) -> None:
        """Sort the lines of the next code cell into imports and body, if the cell is
        exported.
        """
        self.cell += 1
        lines = source.split("\n")
        n_directives = self._check_directives(lines)
        if not n_directives:
            return
        try:
            tree = ast.parse(source)
        except SyntaxError as error:
            line, text = error.lineno or 1, (error.text or "").strip()
            magic = MAGIC.match(text) and f"IPython magic or shell command `{text}`"
            return self.need(False, line, magic or f"syntax error: {error.msg}")
        self.exported += [(text, self.cell, line) for line, text in enumerate(lines, 1)]
        lines[:n_directives] = [""] * n_directives
        for node in ast.walk(tree):
            if isinstance(node, IMPORT):
                self._check_import(node)
        for node in tree.body:
            if isinstance(
                node, IMPORT
            ):  # goes to the module's imports, its comment with it
                comment = lines[node.end_lineno - 1][node.end_col_offset :].strip()
                self.imports.append(f"{ast.unparse(node)}  {comment}")
                lines[node.lineno - 1 : node.end_lineno] = [""] * (
                    node.end_lineno - node.lineno + 1
                )
            else:
                self._check_statement(node)
        self.body.append("\n".join(lines).strip())

    def _check_directives(self, lines: list[str]) -> int:
        """Check the directives; return how many lines of them an exported cell has,
        else 0.
        """
        found = {
            n: m[1]
            for n, line in enumerate(lines, 1)
            if (m := DIRECTIVE.fullmatch(line))
        }
        place = 1  # the line where `#| export` belongs
        if self.cell == 1:
            place, first = 2, f"default_exp {self.topic}"
            self.need(
                found.pop(1, "") == first, 1, f"the first line must be `#| {first}`"
            )
        for n, directive in found.items():
            right = (n, directive) == (place, "export")
            self.need(
                right, n, f"`#| {directive}`: only `#| export` in line {place} is known"
            )
        return place if found.get(place) == "export" else 0

    def _check_import(self, node: IMPORT) -> None:
        """Refuse imports that go forwards in the course."""
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        for module in sorted({".".join(name.split(".")[:2]) for name in names}):
            package, _, topic = module.partition(".")
            right = package != "shared" or topic in self.earlier
            self.need(
                right, node.lineno, f"`{module}` is not an earlier module of the course"
            )

    def _check_statement(self, node: ast.stmt) -> None:
        """Note the public names that a top-level statement defines; refuse what acts on
        import.
        """
        act = f"this would act when imported: `{ast.unparse(node).splitlines()[0]}`"
        self.need(isinstance(node, QUIET), node.lineno, act)
        for name in _public_names(node):
            cell, first = self.names.setdefault(name, (self.cell, node))
            twice = f"`{name}` is exported twice, first in code cell {cell}, line {first.lineno}"
            self.need(first is node, node.lineno, twice)

    def module(self, promise: str) -> str:
        """Put the module together, not yet formatted, and have its names checked.

        Refused are, among others, names that no exported cell defines, and unused
        imports.
        """
        quoted = '"""' + promise.replace("\\", "\\\\").replace('"""', r"\"\"\"")
        head = textwrap.fill(
            quoted, 88, break_long_words=False, break_on_hyphens=False
        )
        names = json.dumps(list(self.names))
        if (
            len(names) > 78
        ):  # several on a line, where the formatter would give each its own
            names = textwrap.indent(textwrap.fill(names[1:-1] + ",", 80), "    ")
            names = f"[\n{names}\n]  # fmt: skip"
        _, program = self.names.get("main", (0, None))
        if isinstance(program, ast.FunctionDef) and "argv" in ast.unparse(program.args):
            self.imports.append("import sys")
            self.body.append('if __name__ == "__main__":\n    sys.exit(main())')
        source = "\n".join(text for text, _, _ in self.exported)
        for finding in (
            [] if self.refusals else json.loads(_ruff("check", source, *CHECKS))
        ):
            _, self.cell, line = self.exported[finding["location"]["row"] - 1]
            self.need(False, line, f"{finding['message']} in the exported cells")
        parts = [
            head,
            ORIGIN.format(self.label),
            "\n".join(self.imports),
            f"__all__ = {names}",
        ]
        return "\n\n".join([*parts, *filter(None, self.body)])


def _public_names(node: ast.stmt) -> list[str]:
    """Return the names without underscore that a statement defines, imported ones not
    counted.
    """
    names = [node.name] if isinstance(node, DEFINITION) else []
    annotated = isinstance(node, ast.AnnAssign) and node.value
    targets = [node.target] if annotated else getattr(node, "targets", [])
    parts = [
        part
        for target in targets
        for part in ast.walk(target)
        if isinstance(part, ast.Name)
    ]
    names += [part.id for part in parts if isinstance(part.ctx, ast.Store)]
    return [name for name in names if not name.startswith("_")]


def _ruff(command: str, source: str, *options: str) -> str:
    """Pass Python source through ruff and return what it prints."""
    command_line = [sys.executable, "-m", "ruff", command, *RUFF_OPTIONS, *options, "-"]
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RUFF_")
    }
    result = subprocess.run(
        command_line, input=source.encode(), capture_output=True, env=env
    )
    if result.returncode:
        raise RuntimeError(
            f"ruff {command} failed: {result.stderr.decode(errors='replace')}"
        )
    return result.stdout.decode()


def export_notebook(path: Path | str, root: Path | str = ROOT) -> str:
    """Return the source text of the module that a notebook exports; nothing is written.

    The text depends on the notebook's sources and on the names of the notebooks below
    `root`, not on outputs. Raises ExportError, with every reason, if it cannot become a
    module.
    """
    path, notebooks = Path(path).resolve(), find_notebooks(Path(root).resolve())
    taken = [*HAND_WRITTEN, *(topic_of(other) for other in notebooks if other != path)]
    right = (
        re.fullmatch(r"ch\d\d_[a-z][a-z0-9_]*", path.stem)
        and topic_of(path) not in taken
    )
    if path not in notebooks or not right:
        where = (
            "chNN_<topic>.ipynb in a folder ch* of the course, with a topic of its own"
        )
        raise ExportError(f"{_label(path)}: is not a notebook {where}")
    draft, sources = _Draft(path, notebooks), _read_sources(path)
    promise = re.search(
        r"^>[ \t]*(\S.*)", "".join(sources["markdown"][:1]), re.MULTILINE
    )
    if not promise:
        raise ExportError(
            f"{_label(path)}: the first markdown cell has no `> ` line, the promise"
        )
    for source in sources["code"] or [""]:
        draft.add_cell(source)
    text = draft.module(MARKUP.sub(r"\1", LINK.sub(r"\1", promise[1].strip())))
    if draft.refusals:
        raise ExportError("\n".join(draft.refusals))
    return _ruff("format", _ruff("check", text, "--select=I", "--fix"))


# ------------------------------------------------------------------------------ all modules


def write(path: Path, root: Path = ROOT, check: bool = False) -> str:
    """Write the module of one notebook, as a whole or not at all; say what has been
    done.

    With `check`, print what would change instead, and raise ExportError if anything
    would. Raises ExportError as `export_notebook` does.
    """
    name, text = f"shared/{topic_of(path)}.py", export_notebook(path, root)
    old = (
        (root / name).read_text("utf-8", errors="replace")
        if (root / name).is_file()
        else ""
    )
    if text == old:
        return f"{name} is in step"
    if check:
        lines = old.split("\n"), text.split("\n")
        print(
            *difflib.unified_diff(*lines, name, f"{name}, as exported", lineterm=""),
            sep="\n",
        )
        raise ExportError(
            f"{name} is not in step: run `python -m shared.export {_label(path)}`"
        )
    with tempfile.TemporaryDirectory(prefix=".export-", dir=root / "shared") as folder:
        whole = Path(folder, "module.py")
        whole.write_bytes(text.encode())
        os.replace(whole, root / name)
    return f"wrote {name}"


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run the program; return 0 if every module is in step with its notebook, else 1."""
    parser = argparse.ArgumentParser(
        "python -m shared.export", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "notebooks", nargs="*", metavar="NOTEBOOK", help="default: every notebook"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, print what differs"
    )
    arguments = parser.parse_args(argv)
    # A path counts from the top folder or, if there is nothing, from the current one.
    named = [
        path if (path := root / name).exists() else Path(name)
        for name in arguments.notebooks
    ]
    notebooks = [path.resolve() for path in named] or find_notebooks(root)
    problems = [] if notebooks else [f"there is no notebook ch*/ch*.ipynb in {root}"]
    for path in notebooks:
        try:
            print(f"{path.stem}: {write(path, root, arguments.check)}")
        except ExportError as error:
            problems.append(str(error))
    known = {"__init__", *HAND_WRITTEN, *map(topic_of, notebooks)}
    gone = (
        [] if named else {path.stem for path in (root / "shared").glob("*.py")} - known
    )
    problems += [
        f"shared/{topic}.py has no notebook; delete it" for topic in sorted(gone)
    ]
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(
        errors="backslashreplace"
    )  # a diff may hold what a console cannot show
    sys.exit(main())
