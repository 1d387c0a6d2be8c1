"""Turn the exported cells of each notebook into a module, or check that it was done.

    python -m shared.support.export                   write every module
    python -m shared.support.export ch03_attention    write the module of one notebook
    python -m shared.support.export --check           write nothing, show what differs
    python -m shared.support.export --clean           bring notebooks to the stored form

The notebook is the only source: `chNN_<topic>.ipynb` becomes `shared/<topic>.py`, and a
module is never edited by hand. A code cell is copied if its first line is `#| export`;
the names that it defines are public. After `#| exporti` they are for inside use: in the
module, but not in its `__all__`.

Nothing in a notebook is executed. What a reader could trip over is refused, with its
notebook, cell and line (of the code cells, and within the cell, counted from 1), and a
refused notebook leaves its module as it is. Whatever else may be wrong with a module,
such as a name that no exported cell defines, is for ruff to find.

`--clean` undoes what JupyterLab and nbconvert add to a notebook, so that a line that
was edited is a line that differs.
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
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from shared.support import COURSE, read_json, write_whole

COMMAND = "python -m shared.support.export"
DIRECTIVES = ("#| export", "#| exporti")
# Also with a byte order mark before it, another bar, no bar, ...
LIKE_A_DIRECTIVE = re.compile(r"[\s\ufeff\u200b]*#+(\s*[|¦｜]|[:!>]*exporti?\s*$)")
MAGIC = re.compile(r"[%!?]|[\w, ]+=\s*[%!]|[\w.*]+\?{1,2}$")

NOTEBOOK = re.compile(r"ch\d\d_\w+(?<!_exercises)")
LAST_CELL = re.compile(r'"--check\\?", \\?"(\w+)')
PROMISE = re.compile(r"^>[ \t]*(\S.*)", re.MULTILINE)
HEADING = re.compile(r"^## (.*)", re.MULTILINE)
LINK = re.compile(r"!?\[(.*?)\]\(.*?\)")

# `--isolated` and an empty `src` keep a reader's own settings and folders out of it.
RUFF = ["--isolated", "--quiet", "--line-length=88", "--target-version=py311"]
RUFF += ["--config=src = []", '--config=lint.isort.known-first-party = ["shared"]']

KERNEL = dict(display_name="Python 3 (ipykernel)", language="python", name="python3")
IMPORT = ast.Import | ast.ImportFrom
DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def find_notebooks(root: Path = COURSE) -> list[Path]:
    """List the notebooks that export a module, in reading order.

    The order is by chapter. Within a chapter, the notebook named like its folder comes
    first and the others follow by name. Left out are exercises (`*_exercises.ipynb`),
    copies, and notebooks that say `**Exports:** nothing`.
    """
    found = [path for path in root.glob("ch*/*.ipynb") if NOTEBOOK.fullmatch(path.stem)]
    texts = {path: path.read_text("utf-8", errors="replace") for path in found}
    found = [p for p, t in texts.items() if is_original(p, t) and exports(p, t)]
    return sorted(found, key=lambda p: (p.stem[:4], p.stem != p.parent.name, p))


def is_original(path: Path, text: str = "") -> bool:
    """Tell a notebook of the course from a copy of it, or in a copy of its folder.

    Its folder holds a notebook of the folder's own name, its name begins as that does,
    and its last cell, if it checks a notebook, checks this one. Who has read its `text`
    hands it on.
    """
    main = path.with_name(f"{path.parent.name}.ipynb")
    names = re.fullmatch(r"(ch\d\d_)\w+/\1\w+", f"{main.stem}/{path.stem}")
    if not names or not main.is_file():
        return False
    checked = LAST_CELL.findall(text or path.read_text("utf-8", errors="replace"))
    return not checked or path.stem in checked


def exports(path: Path, text: str = "") -> bool:
    """Tell whether a notebook exports a module: unless it says that it does not."""
    text = text or path.read_text("utf-8", errors="replace")
    return "**Exports:** nothing" not in text


def topic_of(path: Path) -> str:
    """Return the topic that a notebook is named after, and its module with it.

    >>> topic_of(Path("ch02_text_data/ch02_tokenizer.ipynb"))
    'tokenizer'
    """
    return path.stem.partition("_")[2]


# ---------------------------------------------------------------------- one module


def read_cells(cells: list[dict]) -> tuple[str, list[tuple[str, str]]]:
    """Return a notebook's promise, and its code cells, each with its section's title.

    The promise is the `> ` line of the first cell, "" if that has none.
    """
    sources = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    promise = PROMISE.search(sources[0][1]) if sources else None
    section, code = "", []
    for kind, source in sources:
        if kind == "code":
            code.append((section, source))
        for title in HEADING.findall(source) if kind == "markdown" else []:
            section = re.sub(r"^(\d+\.\d+) ", r"Section \1: ", plain(title))
    return plain(promise[1]) if promise else "", code


def directives_in_text(cells: list[dict]) -> Iterator[str]:
    """Yield where a cell that is no code cell begins with a directive."""
    for number, cell in enumerate(cells, 1):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" and LIKE_A_DIRECTIVE.match(source):
            first = source.strip().split("\n")[0]
            yield f"cell {number}: `{first}` in a {cell['cell_type']} cell"


def plain(markdown: str) -> str:
    """Return a line of Markdown without its markup.

    >>> plain("A **bold** word, `code` and [a link](https://example.org)")
    'A bold word, code and a link'
    """
    return re.sub(r"[*`]", "", LINK.sub(r"\1", markdown)).strip()


def faults(source: str, later: set[str], known: set[str]) -> Iterator[tuple[int, str]]:
    """Yield what a code cell cannot have in a module: the line, and the reason.

    `later` are the modules that it must not import. `known` are the names that earlier
    cells define; those of this one are added.
    """
    lines = source.split("\n")
    exported = lines[0] in DIRECTIVES
    for number, line in enumerate(lines, 1):
        if LIKE_A_DIRECTIVE.match(line) and not (exported and number == 1):
            rule = "a directive is a first line, `#| export` or `#| exporti`"
            yield number, f"`{line.strip()}`: {rule}"
    if not exported:
        return
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        text = (error.text or "").strip()
        what = "IPython magic" if MAGIC.match(text) else f"syntax error, {error.msg}"
        yield error.lineno or 1, f"{what}: `{text}`"
        return
    for node in ast.walk(tree):
        if isinstance(node, IMPORT):
            for module in sorted(imported_modules(node) & later):
                yield node.lineno, f"`{module}` is not an earlier module of the course"
    for node in tree.body:
        for name in defined_names(node):
            if name in known:
                yield node.lineno, f"`{name}` is exported twice"
            known.add(name)


def imported_modules(node: ast.Import | ast.ImportFrom) -> set[str]:
    """Return the modules that an import may mean, as far as `package.module`."""
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{name}" for name in names]
    return {".".join(name.split(".")[:2]) for name in names}


def defined_names(node: ast.stmt) -> list[str]:
    """Return the names, but those with an underscore, that a statement defines."""
    names = [node.name] if isinstance(node, DEFINITION) else []
    if isinstance(node, ast.Assign | ast.AnnAssign):
        stored = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
        names += [part.id for part in stored if isinstance(part.ctx, ast.Store)]
    return [name for name in names if not name.startswith("_")]


def assemble(cells: list[tuple[str, str]]) -> list[str]:
    """Return the parts of a module, in order: imports, public names, blocks of code."""
    imports, public, blocks = [], [], []
    shown = ""
    for section, source in cells:
        directive, *lines = source.split("\n")
        if directive not in DIRECTIVES:
            continue
        for node in ast.parse("\n".join(lines)).body:
            if isinstance(node, IMPORT):
                own = slice(node.lineno - 1, node.end_lineno)
                imports += lines[own]
                lines[own] = [""] * len(lines[own])
            elif directive == "#| export":
                public += defined_names(node)
        block = "\n".join(lines).strip()
        if block and section != shown:
            block = f"# {section}\n{block}"
            shown = section
        blocks.append(block)
    names = json.dumps(public, ensure_ascii=False)
    if len(names) > 78:
        # Several names on a line, where the formatter would give each its own.
        names = textwrap.indent(textwrap.fill(f"{names[1:-1]},", 80), "    ")
        names = f"[\n{names}\n]  # fmt: skip"
    return ["\n".join(imports), f"__all__ = {names}", *filter(None, blocks)]


def formatted(source: str) -> str:
    """Return Python source as ruff formats it, with sorted imports."""
    for command in (["check", "--select=I", "--fix"], ["format"]):
        program = [sys.executable, "-m", "ruff", *command, *RUFF, "-"]
        source = subprocess.check_output(program, input=source, encoding="utf-8")
    return source


def module_text(path: Path, notebooks: list[Path]) -> str:
    """Return the text of the module that a notebook exports, one of `notebooks`.

    It depends on the sources of the cells, and on the names of the notebooks. Raises
    ValueError, with a line for every reason, if the notebook cannot become a module.
    """
    label = f"{path.parent.name}/{path.name}"
    if path not in notebooks:
        raise ValueError(f"{label}: only ch*/chNN_<topic>.ipynb exports a module")
    later = {f"shared.{topic_of(p)}" for p in notebooks[notebooks.index(path) :]}
    promise, code = read_cells(cells := read_json(path)["cells"])
    refused = [] if promise else [f"{label}: the first cell has no `> ` line"]
    refused += [f"{label}, {where}" for where in directives_in_text(cells)]
    known: set[str] = set()
    refused += [
        f"{label}, code cell {number}, line {line}: {reason}"
        for number, (_, source) in enumerate(code, 1)
        for line, reason in faults(source, later, known)
    ]
    if refused:
        raise ValueError("\n".join(refused))
    head = textwrap.fill(f'"""{promise}', 88, break_on_hyphens=False)
    head += f"\n\nGenerated from {label} by\n`{COMMAND}`; "
    head += 'edit the notebook, not this file.\n"""'
    return formatted("\n\n".join([head, *assemble(code)]))


def write(path: Path, notebooks: list[Path], root: Path, check: bool) -> str:
    """Write the module of a notebook, as a whole or not at all; say what was done.

    With `check`, print what would change instead, and raise ValueError if anything
    would. Raises ValueError as `module_text` does.
    """
    name = f"shared/{topic_of(path)}.py"
    old = (root / name).read_text("utf-8") if (root / name).is_file() else ""
    new = module_text(path, notebooks)
    if new == old:
        return f"{name} is in step"
    if check:
        lines = old.split("\n"), new.split("\n")
        print(*difflib.unified_diff(*lines, name, "as exported", lineterm=""), sep="\n")
        raise ValueError(f"{name} is not in step: run `{COMMAND} {path.stem}`")
    write_whole(root / name, new)
    return f"wrote {name}"


# --------------------------------------------------------------------- stored form


def clean_outputs(outputs: list[dict]) -> list[dict]:
    """Return the outputs of a cell as they are stored.

    Consecutive pieces of one stream are joined, and of a line that a progress bar wrote
    again and again, the last state stays. Metadata goes.
    """
    cleaned: list[dict] = []
    for stream, pieces in groupby(outputs, lambda output: output.get("name")):
        if stream is None:
            cleaned += pieces
            continue
        text = "".join("".join(piece["text"]) for piece in pieces)
        text = re.sub(r"[^\n]*\r", "", text.replace("\r\n", "\n"))
        if lines := text.splitlines(keepends=True):
            cleaned.append({"output_type": "stream", "name": stream, "text": lines})
    return [o | {"metadata": {}} if "metadata" in o else o for o in cleaned]


def clean(path: Path) -> str:
    """Bring a notebook to the form in which it is stored; say what was done."""
    notebook = read_json(path)
    notebook["metadata"] = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for cell in notebook["cells"]:
        metadata = cell["metadata"]
        cell["metadata"] = {"tags": metadata["tags"]} if metadata.get("tags") else {}
        if metadata.get("jupyter", {}).get("source_hidden"):
            cell["metadata"]["jupyter"] = {"source_hidden": True}
        source = "".join(cell["source"]).rstrip("\n")
        cell["source"] = source.splitlines(keepends=True)
        if cell["cell_type"] == "code":
            cell["outputs"] = clean_outputs(cell["outputs"])
    text = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    if text == path.read_text(encoding="utf-8"):
        return "is clean"
    write_whole(path, text)
    return "cleaned"


# --------------------------------------------------------------------- the program


def running_notebook() -> Path | None:
    """Return where the notebook lies that runs this, as far as can be told.

    VS Code and JupyterLab tell its path; else it is a nameless one in the working
    directory. None if no notebook runs this.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    if not shell:
        return None
    if told := shell.user_ns.get("__vsc_ipynb_file__"):
        return Path(told).resolve()
    told = Path(os.environ.get("JPY_SESSION_NAME", ""))
    # A kernel that a notebook's cell has started inherits the variable.
    is_here = told.suffix == ".ipynb" and told.parent.resolve() == Path.cwd().resolve()
    return Path.cwd().resolve() / (told.name if is_here else "")


def note_on_place(original: Path) -> str:
    """Return a line if the notebook that runs may not be the one that was checked."""
    running, original = running_notebook(), original.resolve()
    if running is None or running in (original, original.parent):
        return ""
    note = f"note: this runs in {running}, and checked was {original}; if yours is a "
    return note + "copy, what you have changed in it was not looked at\n"


def main(argv: list[str] | None = None, root: Path = COURSE) -> int:
    """Run the program; return 0 if nothing is wrong with any notebook, else 1."""
    parser = argparse.ArgumentParser(COMMAND, description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NOTEBOOK", help="default: all")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="only show what differs")
    mode.add_argument("--clean", action="store_true", help="undo what editors add")
    args = parser.parse_args(argv)
    # Of two with the same name the original counts, so it comes last.
    everywhere = {p.stem: p for p in sorted(root.glob("ch*/*.ipynb"), key=is_original)}
    problems = []
    # A name, or a path in whatever way it is written, means a notebook of the course.
    found = find_notebooks(root)
    names = args.names or found
    for stem in [Path(name).stem for name in names]:
        try:
            if stem not in everywhere:
                raise ValueError(f"{stem}: the course has no such notebook")
            path = everywhere[stem]
            done = clean(path) if args.clean else write(path, found, root, args.check)
            print(f"{stem}: {done}")
        except ValueError as error:
            problems.append(str(error))
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    if args.check and len(names) == 1 and Path(names[0]).stem in everywhere:
        sys.stderr.write(note_on_place(everywhere[Path(names[0]).stem]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
