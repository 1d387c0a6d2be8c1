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
import io
import json
import os
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat.reader import reads as parse_notebook

ROOT = Path(__file__).resolve().parent.parent
HAND_WRITTEN = frozenset({"export", "fetch", "tiny_tales"})

NOTEBOOK_NAME = re.compile(r"ch\d\d_([a-z][a-z0-9_]*)")
DIRECTIVE = re.compile(r"#\s*\|\s*(\w+)\s*(.*?)\s*")
MAGIC = re.compile(r"\s*(?:[%!?]|[\w, ]+=\s*[%!])|\s*[\w.*]+\?{1,2}\s*$")
GENERATED = re.compile(
    r"^Generated from (\S+\.ipynb) by `python -m shared\.export`;$", re.MULTILINE
)
MARKUP = re.compile(
    r"(`+)(?P<code>.+?)\1"
    r"|!?\[(?P<link>[^\]]*)\]\([^)]*\)"
    r"|(\*{1,3})(?P<stars>\S.*?)\4"
    r"|(?<!\w)(_{1,3})(?P<underscores>\S.*?)\6(?!\w)"
)

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


def _read_cells(path: Path) -> tuple[list[str], list[str]]:
    """Return the sources of a notebook's markdown cells and of its code cells."""
    sources: dict[str, list[str]] = {"markdown": [], "code": [], "raw": []}
    try:
        notebook = parse_notebook(path.read_text(encoding="utf-8"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing cell ids do not matter here
            nbformat.validate(notebook)
        if notebook.nbformat != 4:
            raise ValueError(f"nbformat is {notebook.nbformat}, not 4")
        for cell in notebook.cells:
            cell.source.encode()  # half of a surrogate pair could not be written to a file
            sources[cell.cell_type].append(re.sub(r"\r\n?", "\n", cell.source))
    except (OSError, ValueError, TypeError, AttributeError, nbformat.ValidationError) as error:
        reason = str(error).partition("\n")[0]
        raise ExportError(f"{_label(path)}: cannot be read as a notebook: {reason}") from error
    return sources["markdown"], sources["code"]


def _plain(markdown: str) -> str:
    """Return a line of markdown without its emphasis, links and backticks."""
    return MARKUP.sub(
        lambda m: m["code"] or _plain(m["link"] or m["stars"] or m["underscores"] or ""), markdown
    )


# ------------------------------------------------------------------------------ one module


class _Line(NamedTuple):
    """One line of a module's draft, with the cell and the line it comes from (0 if from none)."""

    text: str
    cell: int = 0
    number: int = 0


class _Draft:
    """A module in the making: what the cells gave so far, and what had to be refused."""

    def __init__(self, path: Path, root: Path) -> None:
        self.label, self.topic = _label(path), topic_of(path)
        self.refusals: list[str] = []
        self.imports: dict[str, list[_Line]] = {}  # statement -> its lines, comments above included
        self.body: list[_Line] = []
        self.names: dict[str, tuple[int, int]] = {}  # public name -> cell and line
        self.guard: list[str] = []
        notebooks = find_notebooks(root)
        self.topics = [topic_of(notebook) for notebook in notebooks]
        if path not in notebooks or not NOTEBOOK_NAME.fullmatch(path.stem):
            self.refuse("is not a notebook chNN_<topic>.ipynb in a folder ch* of the course")
        if self.topic in HAND_WRITTEN:
            self.refuse(f"shared/{self.topic}.py is written by hand")
        for other in notebooks:
            if path in notebooks and topic_of(other) == self.topic and other != path:
                self.refuse(f"{_label(other)} exports shared/{self.topic}.py, too")

    def refuse(self, message: str, cell: int = 0, line: int = 0) -> None:
        place = f", code cell {cell}, line {line}" if cell else ""
        self.refusals.append(f"{self.label}{place}: {message}")

    def add_cell(self, cell: int, source: str) -> None:
        """Sort the lines of one code cell into imports and body, if the cell is exported."""
        lines = source.split("\n")
        exported, moved = self._directives(cell, lines)
        tree = self._parse(cell, source) if exported else None
        if tree is None:
            return
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._check_import(cell, node)
        previous_end = 0
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                moved |= self._gather_import(cell, node, lines, previous_end)
            else:
                self._check_statement(cell, node)
            previous_end = node.end_lineno or 0
        numbered = [_Line(text, cell, number) for number, text in enumerate(lines, 1)]
        kept = [line for line in numbered if line.number not in moved]
        while kept and not kept[0].text.strip():
            kept.pop(0)  # the blank lines between imports and code
        self.body += [_Line(""), *kept] if kept else []

    def _directives(self, cell: int, lines: list[str]) -> tuple[bool, set[int]]:
        """Return whether the cell is exported, and the numbers of its directive lines."""
        found: list[str] = []  # directives that stand where they belong: in the first lines
        for number, line in enumerate(lines, 1):
            name, argument = match.groups() if (match := DIRECTIVE.fullmatch(line)) else ("", "")
            leading = number == 1 or (number == 2 and found == ["default_exp"])
            if name == "default_exp" and (cell, number) != (1, 1):
                self.refuse("`#| default_exp` belongs in code cell 1, line 1", cell, number)
            elif name == "default_exp" and argument != self.topic:
                self.refuse(f"default_exp must be `{self.topic}`, not `{argument}`", cell, number)
            elif name == "export" and (argument or not leading):
                self.refuse("`#| export` must be alone in the cell's first line", cell, number)
            elif name not in ("", "default_exp", "export") and leading and line.startswith("#|"):
                self.refuse(f"unknown directive `#| {name}`", cell, number)
            if name in ("default_exp", "export") and leading:
                found.append(name)
        if cell == 1 and "default_exp" not in found:
            self.refuse(f"the first line must be `#| default_exp {self.topic}`", 1, 1)
        return "export" in found, set(range(1, len(found) + 1))

    def _parse(self, cell: int, source: str) -> ast.Module | None:
        """Parse a cell; refuse syntax errors, and with them magics, which are never Python."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an invalid escape in a string, say
                tree = ast.parse(source, feature_version=(3, 11))
                compile(tree, self.label, "exec", dont_inherit=True)  # finds `return` outside a def
            return tree
        except ValueError as error:  # characters that no Python source may hold
            self.refuse(f"syntax error: {error}", cell, 1)
        except SyntaxError as error:
            lines, number = source.split("\n"), error.lineno or 1
            text = lines[min(number, len(lines)) - 1]
            magic = f"IPython magic or shell command `{text.strip()}`"
            self.refuse(magic if MAGIC.match(text) else f"syntax error: {error.msg}", cell, number)
        return None

    def _check_import(self, cell: int, node: ast.Import | ast.ImportFrom) -> None:
        """Refuse imports that are relative, wildcards, or go forwards in the course."""
        prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        if isinstance(node, ast.ImportFrom) and node.level:
            return self.refuse("relative import; name the module in full", cell, node.lineno)
        if node.names[0].name == "*":
            return self.refuse("wildcard import; name what you import", cell, node.lineno)
        parts = [f"{prefix}{alias.name}.".split(".") for alias in node.names]
        for topic in dict.fromkeys(part[1] for part in parts if part[0] == "shared"):
            if topic in HAND_WRITTEN:
                continue
            if topic not in self.topics:
                message = f"`shared.{topic}`".replace(".`", "`") + " is not a module of this course"
                self.refuse(message, cell, node.lineno)
            elif topic == self.topic:
                self.refuse(f"`shared.{topic}` imports itself", cell, node.lineno)
            elif self.topic in self.topics[: self.topics.index(topic)]:
                self.refuse(f"`shared.{topic}` comes later in the course", cell, node.lineno)

    def _gather_import(
        self, cell: int, node: ast.Import | ast.ImportFrom, lines: list[str], previous_end: int
    ) -> set[int]:
        """Note a top-level import, one entry a name; return the numbers of its lines.

        Comments directly above the import and behind it go with it.
        """
        first, last = node.lineno, node.end_lineno or node.lineno
        behind = lines[last - 1].encode()[node.end_col_offset :].decode().strip()
        if node.col_offset or behind[:1] not in ("", "#"):
            self.refuse("put the import on a line of its own", cell, first)
        while first - 1 > previous_end and re.match(r"#(?!\s*\|)", lines[first - 2]):
            first -= 1
        above = [_Line(lines[number - 1], cell, number) for number in range(first, node.lineno)]
        for alias in node.names:
            one = ast.Import([alias])
            if isinstance(node, ast.ImportFrom):
                one = ast.ImportFrom(node.module, [alias], 0)
            statement = ast.unparse(one)
            line = _Line(f"{statement}  {behind}".rstrip(), cell, node.lineno)
            self.imports.setdefault(statement, [*above, line])
            above, behind = [], ""
        return set(range(first, last + 1))

    def _check_statement(self, cell: int, node: ast.stmt) -> None:
        """Note the public names that a top-level statement defines; refuse what acts on import."""
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            advice = "would run in the notebook: define `main(argv=None)`, the exporter adds it"
            return self.refuse(f"the `__main__` guard {advice}", cell, node.lineno)
        statements = list(_statements(node))
        for statement in statements:
            if not _is_quiet(statement):
                text = ast.unparse(statement).partition("\n")[0]
                self.refuse(f"this would act when imported: `{text}`", cell, statement.lineno)
        for name in dict.fromkeys(name for inner in statements for name in _defined_names(inner)):
            if name == "__all__":
                self.refuse("`__all__` is written by the exporter", cell, node.lineno)
            elif name in self.names:
                before = "code cell {}, line {}".format(*self.names[name])
                self.refuse(f"`{name}` is exported twice, first in {before}", cell, node.lineno)
            elif not name.startswith("_"):
                self.names[name] = (cell, node.lineno)
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            self._add_guard(cell, node.args, node.lineno)

    def _add_guard(self, cell: int, arguments: ast.arguments, line: int) -> None:
        """Make a module with a `main(argv=None)` a program."""
        positional = arguments.posonlyargs + arguments.args
        if "argv" in [argument.arg for argument in positional + arguments.kwonlyargs]:
            if len(positional) > len(arguments.defaults) or None in arguments.kw_defaults:
                self.refuse("`main` must run without arguments: `main(argv=None)`", cell, line)
            self.imports.setdefault("import sys", [_Line("import sys", cell, line)])
            self.guard = ['if __name__ == "__main__":', "    sys.exit(main())"]

    def lines(self, promise: str) -> list[_Line]:
        """Put the module together, not yet formatted."""
        promise = promise.replace("\\", "\\\\").replace('"""', r"\"\"\"")
        head = textwrap.wrap(f'"""{promise}', 100, break_long_words=False, break_on_hyphens=False)
        head += ["", f"Generated from {self.label} by `python -m shared.export`;"]
        head += ["edit the notebook, not this file.", '"""', ""]
        imports = [line for lines in self.imports.values() for line in lines]
        names = _Line(f"__all__ = {list(self.names)}")
        return [*map(_Line, head), *imports, names, *self.body, *map(_Line, ["", *self.guard])]

    def check_names(self, lines: list[_Line]) -> None:
        """Refuse names that are used but not defined, imports without use, redefinitions."""
        options = ("--select=F821,F401,F811", "--ignore-noqa", "--output-format=json")
        for finding in json.loads(_ruff("check", _text(lines), *options)):
            line = lines[finding["location"]["row"] - 1]
            message = re.sub(r" from line \d+", "", finding["message"])
            if finding["code"] == "F821":
                message += ": no exported cell imports or defines it"
            self.refuse(message, line.cell, line.number)


def _statements(node: ast.stmt) -> Iterator[ast.stmt]:
    """Yield a statement; of `if TYPE_CHECKING` and of `try` around imports, what is inside."""
    inner = [node]
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        inner = node.body + node.orelse
    elif isinstance(node, ast.Try) and isinstance(node.body[0], ast.Import | ast.ImportFrom):
        fallback = [statement for handler in node.handlers for statement in handler.body]
        fallback = [statement for statement in fallback if not isinstance(statement, ast.Raise)]
        inner = node.body + fallback + node.orelse + node.finalbody
    for statement in inner:
        yield from [node] if statement is node else _statements(statement)


def _is_quiet(node: ast.stmt) -> bool:
    """Tell whether a statement only imports, defines or assigns (or is a docstring)."""
    definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
    assignment = ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Pass
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return docstring or isinstance(node, definition | assignment)


def _defined_names(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement defines, imported ones not counted."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AnnAssign) and node.value:
        targets = [node.target]
    for part in (part for target in targets for part in ast.walk(target)):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id


def _text(lines: Iterable[_Line]) -> str:
    return "".join(f"{line.text}\n" for line in lines)


def _ruff(command: str, source: str, *options: str) -> str:
    """Pass Python source through ruff and return what it prints."""
    result = subprocess.run(
        [sys.executable, "-m", "ruff", command, *RUFF_OPTIONS, *options, "-"],
        input=source.encode(),
        capture_output=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("RUFF_")},
    )
    if result.returncode > 1 or not result.stdout:  # 1: `check` found something
        raise RuntimeError(f"ruff {command} failed: {result.stderr.decode(errors='replace')}")
    return result.stdout.decode()


def export_notebook(path: Path | str, root: Path | str = ROOT) -> str:
    """Return the source text of the module that a notebook exports; nothing is written.

    The text depends on the notebook's sources and on the names of the notebooks below `root`,
    not on outputs. Raises ExportError, with every reason, if it cannot become a module.
    """
    path = Path(path).resolve()
    draft = _Draft(path, Path(root).resolve())
    if draft.refusals:
        raise ExportError("\n".join(draft.refusals))
    markdown, code = _read_cells(path)
    promise = re.search(r"^>[ \t]*(\S.*)", "".join(markdown[:1]), re.MULTILINE)
    if not promise:
        draft.refuse("the first markdown cell has no `> ` line that promises what readers get")
    for cell, source in enumerate(code or [""], 1):
        draft.add_cell(cell, source)
    lines = draft.lines(_plain(promise[1].strip()) if promise else "")
    if not draft.refusals:
        draft.check_names(lines)
    if draft.refusals:
        raise ExportError("\n".join(draft.refusals))
    return _ruff("format", _ruff("check", _text(lines), "--select=I", "--fix"))


# ------------------------------------------------------------------------------ all modules


def write(path: Path, root: Path = ROOT) -> bool:
    """Write the module of one notebook; return False if it had the right bytes already.

    The module is replaced as a whole or not at all. Raises ExportError as `export_notebook` does.
    """
    data = export_notebook(path, root).encode()
    module = root / "shared" / f"{topic_of(path)}.py"
    if module.is_file() and module.read_bytes() == data:
        return False
    beside = module.with_name(f".{module.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(data)
        os.replace(beside, module)
    finally:
        beside.unlink(missing_ok=True)
    return True


def check(path: Path, root: Path = ROOT) -> str:
    """Return the difference between a notebook's module and what it should be, "" if none.

    Line endings do not count: git may have changed them. Raises ExportError as `export_notebook`.
    """
    name = f"shared/{topic_of(path)}.py"
    return _difference(root / name, export_notebook(path, root), f"{name} from {_label(path)}")


def _difference(module: Path, text: str, label: str) -> str:
    old, new = _read_module(module).split("\n"), text.split("\n")
    return "\n".join(difflib.unified_diff(old, new, f"shared/{module.name}", label, lineterm=""))


def _read_module(module: Path) -> str:
    text = module.read_bytes().decode("utf-8", errors="replace") if module.is_file() else ""
    return text.replace("\r\n", "\n")


def find_orphans(root: Path) -> dict[Path, str]:
    """Map each generated module that no notebook exports any more to the notebook it names."""
    kept = set(map(topic_of, find_notebooks(root)))
    modules = [path for path in sorted((root / "shared").glob("*.py")) if path.stem not in kept]
    sources = {module: GENERATED.search(_read_module(module)) for module in modules}
    return {module: source[1] for module, source in sources.items() if source}


def _locate(argument: str, root: Path) -> Path:
    """Find the notebook a command line names, relative to the current folder or to `root`."""
    places = [(base / argument).resolve() for base in (Path.cwd(), root)]
    return places[1] if places[1] in find_notebooks(root) else places[0]


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run the program; return 0 if every module is in step with its notebook, else 1."""
    parser = argparse.ArgumentParser("python -m shared.export", description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="default: every notebook")
    parser.add_argument("--check", action="store_true", help="write nothing, print what differs")
    arguments = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a diff may hold what a console cannot show
            stream.reconfigure(errors="backslashreplace")

    root = root.resolve()
    notebooks = [_locate(name, root) for name in arguments.notebooks] or find_notebooks(root)
    problems = [] if notebooks else [f"there is no notebook ch*/ch*.ipynb in {root}"]
    for path in notebooks:
        module = f"shared/{topic_of(path)}.py"
        try:
            difference = check(path, root) if arguments.check else ""
            written = not arguments.check and write(path, root)
        except ExportError as error:
            problems.append(str(error))
            continue
        if difference:
            problems.append(
                f"{module} is not in step: run `python -m shared.export {_label(path)}`"
            )
            print(difference)
        else:
            print(
                f"{path.stem}: wrote {module}" if written else f"{path.stem}: {module} is in step"
            )
    if not arguments.notebooks:
        for module, source in find_orphans(root).items():
            if arguments.check:
                print(_difference(module, "", "nothing"))
            problems.append(
                f"shared/{module.name}: its notebook {source} is gone; delete the module"
            )
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
