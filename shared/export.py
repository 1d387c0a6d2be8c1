"""Turn the `#| export` cells of each notebook into one module, or check that this has been done.

    python -m shared.export                                        write every module
    python -m shared.export ch02_text_data/ch02_text_data.ipynb    write this notebook's module
    python -m shared.export --check                                write nothing, show what differs

The notebook is the only source: `chNN_<topic>.ipynb` becomes `shared/<topic>.py`, and a module is
never edited by hand. The first code cell of the notebook starts with `#| default_exp <topic>`.
A cell is copied if its first line is `#| export` (in the first code cell: its second line).

Nothing in a notebook is executed. Cells are parsed with `ast`, and whatever could not stand in a
module is refused, with its notebook, cell and line. A refused notebook leaves its module as it is.
Cells are counted over the code cells from 1, lines within the cell, directives included.
"""

import argparse
import ast
import difflib
import json
import os
import re
import subprocess
import sys
import textwrap
import warnings
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat.reader import reads as parse_notebook

ROOT = Path(__file__).resolve().parent.parent
HAND_WRITTEN = frozenset({"export", "fetch", "tiny_tales"})

NOTEBOOK_NAME = re.compile(r"ch\d\d_[a-z][a-z0-9_]*")
DIRECTIVE = re.compile(r"#\s*\|\s*(\w+)\s*(.*?)\s*")
MAGIC = re.compile(r"\s*(?:[%!?]|[\w, ]+=\s*[%!])|\s*[\w.*]+\?{1,2}\s*$")
GENERATED = re.compile(r"^Generated from (\S+\.ipynb) by `python -m shared\.export`;$", re.M)
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
EMPHASIS = re.compile(r"(?<!\s)\*+|\*+(?!\s)|(?<!\w)_+|_+(?!\w)")

IMPORT = ast.Import | ast.ImportFrom
DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
QUIET = IMPORT | DEFINITION | ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Pass | ast.Raise

# `--isolated` and the explicit settings keep a reader's own configuration out of the result.
RUFF_OPTIONS = ["--isolated", "--quiet", "--line-length=100", "--target-version=py311"]
RUFF_OPTIONS += ["--config=src = []", '--config=lint.isort.known-first-party = ["shared"]']


class ExportError(ValueError):
    """A notebook cannot become a module; the message has one line for each reason."""


# ------------------------------------------------------------------------------ notebooks


def find_notebooks(root: Path) -> list[Path]:
    """List the notebooks below `root` that export a module, in reading order.

    The order is by chapter. Within a chapter, the notebook named like its folder comes first and
    the others follow by name: `ch05_pretraining`, then `ch05_pretrained_weights`.
    Notebooks of exercises (`*_exercises.ipynb`) export nothing and are left out.
    """
    found = [path for path in root.glob("ch*/ch*.ipynb") if not path.stem.endswith("_exercises")]
    return sorted(found, key=lambda path: (path.stem[:4], path.stem != path.parent.name, path))


def topic_of(path: Path) -> str:
    """Return the topic a notebook is named after, which names its module.

    >>> topic_of(Path("ch02_text_data/ch02_text_data.ipynb"))
    'text_data'
    """
    return path.stem.partition("_")[2]


def _label(path: Path) -> str:
    """Name a notebook the way messages and modules do: its folder and its file."""
    return f"{path.parent.name}/{path.name}"


def _check_name(path: Path, notebooks: list[Path]) -> None:
    """Refuse a notebook whose name does not say which module it becomes, or not it alone."""
    module, wrong = f"shared/{topic_of(path)}.py", ""
    for other in notebooks:
        if topic_of(other) == topic_of(path) and other != path:
            wrong = f"{_label(other)} exports {module}, too"
    if topic_of(path) in HAND_WRITTEN:
        wrong = f"{module} is written by hand"
    if path not in notebooks or not NOTEBOOK_NAME.fullmatch(path.stem):
        wrong = "is not a notebook chNN_<topic>.ipynb in a folder ch* of the course"
    if wrong:
        raise ExportError(f"{_label(path)}: {wrong}")


def _read_cells(path: Path) -> list[tuple[str, str]]:
    """Return the type ("markdown", "code", ...) and the source of each cell of a notebook."""
    try:
        notebook = parse_notebook(path.read_text(encoding="utf-8"))
        with warnings.catch_warnings(action="ignore"):  # missing cell ids do not matter here
            nbformat.validate(notebook)
        if notebook.nbformat != 4:
            raise ValueError(f"nbformat is {notebook.nbformat}, not 4")
        cells = [(cell.cell_type, re.sub(r"\r\n?", "\n", cell.source)) for cell in notebook.cells]
        "".join(source for _, source in cells).encode()  # fails on half of a surrogate pair
    except Exception as error:  # JSON, encoding, structure: there are many ways to be damaged
        reason = str(error).partition("\n")[0]
        raise ExportError(f"{_label(path)}: cannot be read as a notebook: {reason}") from error
    return cells


def _plain(markdown: str) -> str:
    """Return a line of markdown without its links, emphasis and backticks."""
    pieces = re.split("`+", LINK.sub(r"\1", markdown))
    pieces[::2] = [EMPHASIS.sub("", text) for text in pieces[::2]]  # every other piece is code
    return "".join(pieces)


# ------------------------------------------------------------------------------ one module


class _Line(NamedTuple):
    """One line of a module's draft, with the cell and the line it comes from (0 if from none)."""

    text: str
    cell: int = 0
    number: int = 0


class _Draft:
    """A module in the making: what the cells gave so far, and what had to be refused."""

    def __init__(self, path: Path, notebooks: list[Path]) -> None:
        self.label, self.topic = _label(path), topic_of(path)
        self.refusals: list[str] = []
        self.imports: dict[str, list[_Line]] = {}  # statement -> its lines, comments above included
        self.body: list[_Line] = []
        self.names: dict[str, str] = {}  # public name -> where it is defined
        self.guard: list[str] = []
        self.cell = 0  # the number of the code cell that is being added
        modules = [f"shared.{topic_of(other)}" for other in notebooks]
        earlier = modules[: notebooks.index(path)] + [f"shared.{name}" for name in HAND_WRITTEN]
        self.why_not = dict.fromkeys(modules, "comes later in the course")
        self.why_not |= {f"shared.{self.topic}": "imports itself", **dict.fromkeys(earlier, "")}

    def refuse(self, message: str, line: int) -> None:
        """Note what cannot stand in a module, at a line of the cell that is being added."""
        self.refusals.append(f"{self.label}, code cell {self.cell}, line {line}: {message}")

    def add_cell(self, source: str) -> None:
        """Sort the lines of the next code cell into imports and body, if the cell is exported."""
        self.cell += 1
        lines = source.split("\n")
        end = self._directives(lines)
        tree = self._parse(source) if end else None
        if tree is None:
            return
        for node in ast.walk(tree):
            if isinstance(node, IMPORT):
                self._check_import(node)
        moved = set(range(1, end + 1))
        for node in tree.body:
            if isinstance(node, IMPORT):
                moved |= self._gather_import(node, lines, end)
            else:
                self._check_statement(node)
            end = node.end_lineno
        kept = [_Line(text, self.cell, n) for n, text in enumerate(lines, 1) if n not in moved]
        kept = list(dropwhile(lambda line: not line.text.strip(), kept))
        self.body += [_Line(""), *kept] if kept else []

    def _directives(self, lines: list[str]) -> int:
        """Check the directives; return how many lines of them an exported cell has, else 0."""
        place = 2 if self.cell == 1 else 1  # the line where `#| export` belongs
        found = {n: m.groups() for n, s in enumerate(lines, 1) if (m := DIRECTIVE.fullmatch(s))}
        if self.cell == 1:
            name, argument = found.pop(1, ("", ""))
            if name != "default_exp":
                self.refuse(f"the first line must be `#| default_exp {self.topic}`", 1)
            elif argument != self.topic:
                self.refuse(f"default_exp must be `{self.topic}`, not `{argument}`", 1)
        for number, (name, argument) in found.items():
            if name == "default_exp":
                self.refuse("`#| default_exp` belongs in code cell 1, line 1", number)
            elif name == "export" and (argument or number != place):
                self.refuse("`#| export` must be alone in the cell's first line", number)
            elif name != "export" and number == place:
                self.refuse(f"unknown directive `#| {name}`", number)
        return place if "export" in found.get(place, ()) else 0

    def _parse(self, source: str) -> ast.Module | None:
        """Parse a cell; refuse syntax errors, and with them magics, which are never Python."""
        try:
            with warnings.catch_warnings(action="ignore"):  # an invalid escape in a string, say
                tree = ast.parse(source, feature_version=(3, 11))
                compile(tree, self.label, "exec", dont_inherit=True)  # finds `return` outside a def
            return tree
        except (SyntaxError, ValueError) as error:  # ValueError: what no Python source may hold
            line = getattr(error, "lineno", None) or 1
            text = "".join(source.split("\n")[line - 1 : line]).strip()
            magic = f"IPython magic or shell command `{text}`"
            message = f"syntax error: {getattr(error, 'msg', error)}"
            self.refuse(magic if MAGIC.match(text) else message, line)

    def _check_import(self, node: IMPORT) -> None:
        """Refuse imports that are relative, wildcards, or go forwards in the course."""
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            if node.level:
                return self.refuse("relative import; name the module in full", node.lineno)
            if names == ["*"]:
                return self.refuse("wildcard import; name what you import", node.lineno)
            names = [f"{node.module}.{name}" for name in names]
        for module in dict.fromkeys(".".join(name.split(".")[:2]) for name in names):
            reason = self.why_not.get(module, "is not a module of this course")
            if module.split(".")[0] == "shared" and reason:
                self.refuse(f"`{module}` {reason}", node.lineno)

    def _gather_import(self, node: IMPORT, lines: list[str], end: int) -> set[int]:
        """Note a top-level import, one entry a name; return the numbers of its lines.

        Comments behind it and directly above, back to the `end` of what came before, go with it.
        """
        first, last = node.lineno, node.end_lineno
        behind = lines[last - 1].encode()[node.end_col_offset :].decode().strip()
        if node.col_offset or behind[:1] not in ("", "#"):
            self.refuse("put the import on a line of its own", first)
        while first - 1 > end and lines[first - 2].startswith("#"):
            first -= 1
        above = [_Line(lines[n - 1], self.cell, n) for n in range(first, node.lineno)]
        for alias in node.names:
            node.names = [alias]
            statement = ast.unparse(node)
            line = _Line(f"{statement}  {behind}".rstrip(), self.cell, node.lineno)
            self.imports.setdefault(statement, [*above, line])
            above, behind = [], ""
        return set(range(first, last + 1))

    def _check_statement(self, node: ast.stmt) -> None:
        """Note the public names that a top-level statement defines; refuse what acts on import."""
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            advice = "would run in the notebook; the exporter writes one for `main(argv=None)`"
            return self.refuse(f"the `__main__` guard {advice}", node.lineno)
        names = {}  # name -> None: in this order, each once
        for statement in _statements(node):
            names |= dict.fromkeys(_defined_names(statement))
            if not isinstance(statement, QUIET):
                text = ast.unparse(statement).partition("\n")[0]
                self.refuse(f"this would act when imported: `{text}`", statement.lineno)
        for name in names:
            if name == "__all__":
                self.refuse("`__all__` is written by the exporter", node.lineno)
            elif name in self.names:
                self.refuse(f"`{name}` is exported twice, first in {self.names[name]}", node.lineno)
            elif not name.startswith("_"):
                self.names[name] = f"code cell {self.cell}, line {node.lineno}"
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            self._add_guard(node.args, node.lineno)

    def _add_guard(self, given: ast.arguments, line: int) -> None:
        """Make a module with a `main(argv=None)` a program."""
        if "argv" in ast.unparse(given):
            positional = given.posonlyargs + given.args
            if len(positional) > len(given.defaults) or None in given.kw_defaults:
                self.refuse("`main` must run without arguments: `main(argv=None)`", line)
            self.imports.setdefault("import sys", [_Line("import sys", self.cell, line)])
            self.guard = ['if __name__ == "__main__":', "    sys.exit(main())"]

    def lines(self, promise: str) -> list[_Line]:
        """Put the module together, not yet formatted."""
        promise = promise.replace("\\", "\\\\").replace('"""', r"\"\"\"")
        head = textwrap.wrap(f'"""{promise}', 100, break_long_words=False, break_on_hyphens=False)
        head += ["", f"Generated from {self.label} by `python -m shared.export`;"]
        head += ["edit the notebook, not this file.", '"""', ""]
        imports = [line for lines in self.imports.values() for line in lines]
        names = json.dumps(list(self.names))
        if len(names) > 90:  # several on a line, where the formatter would give each its own
            inner = textwrap.fill(
                names[1:-1] + ",", 96, initial_indent="    ", subsequent_indent="    "
            )
            names = f"[\n{inner}\n]  # fmt: skip"
        names = map(_Line, f"__all__ = {names}".splitlines())
        return [*map(_Line, head), *imports, *names, *self.body, *map(_Line, ["", *self.guard])]

    def check_names(self, lines: list[_Line], text: str) -> None:
        """Refuse names that are used but not defined, imports without use, redefinitions."""
        options = ("--select=F821,F401,F811", "--ignore-noqa", "--output-format=json")
        for finding in json.loads(_ruff("check", text, *options)):
            _, self.cell, line = lines[finding["location"]["row"] - 1]
            message = re.sub(r" from line \d+", "", finding["message"])
            if finding["code"] == "F821":
                message += ": no exported cell imports or defines it"
            self.refuse(message, line)


def _statements(node: ast.AST) -> list[ast.stmt]:
    """Return a statement; of `if TYPE_CHECKING` and of `try` around imports, what is inside."""
    typing = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    trial = isinstance(node, ast.Try) and isinstance(node.body[0], IMPORT)
    if not (typing or trial or isinstance(node, ast.ExceptHandler)):
        return [node] if isinstance(node, ast.stmt) else []
    return [inner for child in ast.iter_child_nodes(node) for inner in _statements(child)]


def _defined_names(node: ast.stmt) -> list[str]:
    """Return the names that a statement defines, imported ones not counted."""
    if isinstance(node, DEFINITION):
        return [node.name]
    annotated = isinstance(node, ast.AnnAssign) and node.value
    targets = [node.target] if annotated else getattr(node, "targets", [])
    parts = [part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
    return [part.id for part in parts if isinstance(part.ctx, ast.Store)]


def _ruff(command: str, source: str, *options: str) -> str:
    """Pass Python source through ruff and return what it prints."""
    command_line = [sys.executable, "-m", "ruff", command, *RUFF_OPTIONS, *options, "-"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RUFF_")}
    result = subprocess.run(command_line, input=source.encode(), capture_output=True, env=env)
    if result.returncode > 1 or not result.stdout:  # 1: `check` found something
        raise RuntimeError(f"ruff {command} failed: {result.stderr.decode(errors='replace')}")
    return result.stdout.decode()


def export_notebook(path: Path | str, root: Path | str = ROOT) -> str:
    """Return the source text of the module that a notebook exports; nothing is written.

    The text depends on the notebook's sources and on the names of the notebooks below `root`,
    not on outputs. Raises ExportError, with every reason, if it cannot become a module.
    """
    path, notebooks = Path(path).resolve(), find_notebooks(Path(root).resolve())
    _check_name(path, notebooks)
    draft, cells = _Draft(path, notebooks), _read_cells(path)
    markdown = [source for kind, source in cells if kind == "markdown"]
    promise = re.search(r"^>[ \t]*(\S.*)", "".join(markdown[:1]), re.MULTILINE)
    if not promise:
        missing = "the first markdown cell has no `> ` line that promises what readers get"
        draft.refusals.append(f"{draft.label}: {missing}")
    for source in [source for kind, source in cells if kind == "code"] or [""]:
        draft.add_cell(source)
    lines = draft.lines(_plain(promise[1].strip()) if promise else "")
    text = "".join(f"{line.text}\n" for line in lines)
    if not draft.refusals:
        draft.check_names(lines, text)
    if draft.refusals:
        raise ExportError("\n".join(draft.refusals))
    return _ruff("format", _ruff("check", text, "--select=I", "--fix"))


# ------------------------------------------------------------------------------ all modules


def write(path: Path, root: Path = ROOT) -> bool:
    """Write the module of one notebook; return False if it had the right text already.

    The module is replaced as a whole or not at all. Raises ExportError as `export_notebook` does.
    """
    text, module = export_notebook(path, root), root / "shared" / f"{topic_of(path)}.py"
    if _read_module(module) == text:
        return False
    beside = module.with_name(f".{module.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(text.encode())
        os.replace(beside, module)
    finally:
        beside.unlink(missing_ok=True)
    return True


def _difference(module: Path, text: str) -> str:
    """Return what would change in a module if it were `text`, "" if nothing."""
    old, new = _read_module(module).split("\n"), text.split("\n")
    label = f"shared/{module.name}"
    return "\n".join(difflib.unified_diff(old, new, label, f"{label}, as exported", lineterm=""))


def _read_module(module: Path) -> str:
    """Return a module's text, "" if there is none; git may have changed its line endings."""
    text = module.read_bytes().decode("utf-8", errors="replace") if module.is_file() else ""
    return text.replace("\r\n", "\n")


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run the program; return 0 if every module is in step with its notebook, else 1."""
    parser = argparse.ArgumentParser("python -m shared.export", description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="default: every notebook")
    parser.add_argument("--check", action="store_true", help="write nothing, print what differs")
    arguments = parser.parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # a diff may hold what a console cannot show
        sys.stdout.reconfigure(errors="backslashreplace")

    root = root.resolve()
    # A path counts from the top folder or, if there is nothing, from the current one.
    named = [path if (path := root / name).exists() else Path(name) for name in arguments.notebooks]
    notebooks = [path.resolve() for path in named] or find_notebooks(root)
    problems = [] if notebooks else [f"there is no notebook ch*/ch*.ipynb in {root}"]
    for path in notebooks:
        name = f"shared/{topic_of(path)}.py"
        try:
            written = not arguments.check and write(path, root)
            difference = arguments.check and _difference(root / name, export_notebook(path, root))
        except ExportError as error:
            problems.append(str(error))
            continue
        if difference:
            problems.append(f"{name} is not in step: run `python -m shared.export {_label(path)}`")
        state = f"wrote {name}" if written else f"{name} is in step"
        print(difference or f"{path.stem}: {state}")
    for module in [] if named else sorted((root / "shared").glob("*.py")):
        source = GENERATED.search(_read_module(module))
        if source and module.stem not in map(topic_of, notebooks):
            name = f"shared/{module.name}"
            problems.append(f"{name}: its notebook {source[1]} is gone; delete the module")
            print(_difference(module, ""))
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
