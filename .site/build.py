"""Build the reading site: python .site/build.py writes build/site, and a zip of it beside.

The site is the notebooks as they are stored, with the pages of this folder. They are copied to
build/site-source first, where each notebook is made ready for reading: what a prediction asks for
is folded, plots get the descriptions that their cells carry, and terms can be linked to.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sphinx.cmd.build import main as sphinx_build

HERE = Path(__file__).resolve().parent
COURSE = HERE.parent
BUILD = COURSE / "build"
SOURCE, STATIC, SITE = (BUILD / name for name in ("site-source", "site-static", "site"))

NOTEBOOK = re.compile(r"(ch\d\d)_\w+/\1_\w+\.ipynb")
CODE_OF_EXPLORERS = re.compile(r"<style>(.*?)</style>\s*<script>(.*?)</script>", re.DOTALL)
LABEL = re.compile(r"(Question|Answer|Prediction|In the papers.*|\w.*[:.])")
BOLD = re.compile(r"\*\*(.+?)\*\*", re.DOTALL)
BLOCKS = re.compile(r"\n\s*\n|\n(?=#|[|>]|\s*[-*] |\s*\d+\. )")
SENTENCES = re.compile(r"(?<=[.!?)])\s+(?=[A-Z\"*`$(])")
DISPLAYED = re.compile(r"(\$\$[^$]+\$\$)")
LEANS = re.compile(r"(This|It|Its|Such|So|Each|These|They|That|There|Then|Here|And|Or|But|Every)\b")


def notebooks() -> list[Path]:
    """List the notebooks in reading order: the chapter's own, the others, the exercises."""
    found = [path.relative_to(COURSE) for path in COURSE.glob("ch*/*.ipynb")]
    found = [path for path in found if NOTEBOOK.fullmatch(path.as_posix())]
    last = "_exercises"
    return sorted(
        found,
        key=lambda p: (p.stem[:4], p.stem.endswith(last), p.stem != p.parent.name, p.stem),
    )


# ------------------------------------------------------------------- one notebook


def ready_for_reading(notebook: dict, targets: set[str]) -> None:
    """Fold what is asked for, describe plots, and name the cells that others link to."""
    asked = False
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            asked = "**Prediction:**" in source
            source = apart(source)
            if cell["id"] in targets:
                source = f"({cell['id']})=\n{source}"
            cell["source"] = source
            continue
        metadata = cell["metadata"]
        tags = metadata.setdefault("tags", [])
        if metadata.get("jupyter", {}).get("source_hidden"):
            tags.append("hide-input")
        elif asked and cell["outputs"]:
            tags.append("hide-output")
        if "alt" in metadata:
            metadata["mystnb"] = {"image": {"alt": metadata["alt"]}}
        for output in cell["outputs"]:
            html = "".join(output.get("data", {}).get("text/html", ""))
            if html:  # an explorer's style and script stand once for all in static files
                html = CODE_OF_EXPLORERS.sub("", html).replace("<tr><th><th", "<tr><td><th")
                output["data"]["text/html"] = html


def apart(source: str) -> str:
    r"""Put each displayed formula on lines of its own, as MyST wants it.

    >>> apart("> Written $$x$$ with x.")
    '> Written\n>\n> $$x$$\n>\n> with x.'
    """
    lines = []
    for line in source.split("\n"):
        mark = ">" if line.startswith(">") else ""
        parts = [part.strip() for part in DISPLAYED.split(line.removeprefix(mark))]
        if len(parts) == 1:
            lines.append(line)
        for part in parts if len(parts) > 1 else []:
            between = lines and lines[-1].strip("> ") and (part.startswith("$$") or lines[-1].endswith("$$"))
            lines += [mark] * bool(between) + [f"{mark} {part}".strip()] * bool(part)
        if len(parts) > 1 and parts[-1] == "":
            lines.append(mark)
    return "\n".join(lines)


# ----------------------------------------------------------- glossary and symbols


class Term(NamedTuple):
    """A word where it is first used in bold, or a formula as the papers write it."""

    name: str
    text: str  # what is said of it there
    section: str
    cell: str


def blocks(paths: list[Path]) -> Iterator[tuple[str, str, str]]:
    """Yield every paragraph of the notebooks: its text, its section, its cell's id."""
    for path in paths:
        section = ""
        for cell in json.loads((COURSE / path).read_text("utf-8"))["cells"]:
            if cell["cell_type"] != "markdown":
                continue
            source = re.sub(r"<details.*?</details>", "", "".join(cell["source"]), flags=re.DOTALL)
            for block in BLOCKS.split(source):
                if heading := re.match(r"#+ (.*)", block):
                    section = heading[1] if block.startswith("## ") else section
                yield " ".join(block.split()), section, cell["id"]


def advice() -> tuple[set[str], dict[str, Term]]:
    """Read .site/terms.txt: what is no term, and what is said in other words."""
    lines = (HERE / "terms.txt").read_text("utf-8").splitlines()
    skip = {line[2:].lower() for line in lines if line.startswith("- ")}
    pairs = [line.split(": ", 1) for line in lines if not line.startswith(("- ", "#"))]
    return skip, {name.lower(): Term(name, text, "", "") for name, text in pairs}


def terms(paths: list[Path]) -> list[Term]:
    """Find the bold first uses, each with the sentence that it stands in."""
    skip, told = advice()
    found: dict[str, Term] = {}
    for text, section, cell in blocks(paths):
        if text.startswith(("#", "|")):
            continue
        text = re.sub(r"^([-*>]|\d+\.) ", "", text)
        sentences = SENTENCES.split(text)
        for n, sentence in enumerate(sentences):
            for name in BOLD.findall(sentence):
                low = name.lower()
                if low in skip or LABEL.fullmatch(name) or len(name.split()) > 4:
                    continue
                said = sentence
                if n and (LEANS.match(sentence) or len(sentence) < 50):
                    said = f"{sentences[n - 1]} {sentence}"
                said = said.replace("**", "").removesuffix(":")
                name = low if sentence.startswith("**") and name[1:].islower() else name
                term = told.get(low, Term(name, said, "", ""))
                same = low.removesuffix("s")  # tokens, token
                found.setdefault(same, term._replace(section=section, cell=cell))
    left = set(told) - {term.name.lower() for term in found.values()}
    if left:
        print(f".site/terms.txt: nowhere in bold: {', '.join(sorted(left))}")
    return sorted(found.values(), key=lambda term: term.name.lower())


def glossary(found: list[Term]) -> str:
    """Return the glossary as a page."""
    lines = []
    letter = ""
    for term in found:
        first = term.name[0].upper()
        if first != letter:
            letter = first
            lines.append(f"## {letter}\n")
        lines.append(f"**{term.name}**: {term.text} ([{plain(term.section)}](#{term.cell}))\n")
    return "\n".join(lines)


def plain(markdown: str) -> str:
    """Return a heading without its markup."""
    return re.sub(r"[*`]", "", markdown)


def formulas(paths: list[Path]) -> list[Term]:
    """Find the boxes "In the papers this is written"."""
    found = []
    for path in paths:
        section = ""
        for cell in json.loads((COURSE / path).read_text("utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] != "markdown":
                continue
            for block in re.split(r"\n\s*\n", source):
                if heading := re.findall(r"^## (.*)", block, re.MULTILINE):
                    section = heading[-1]
                if block.startswith("> **In the papers"):
                    found.append(Term("", block, section, cell["id"]))
    return found


def symbols(found: list[Term]) -> str:
    """Return the boxes as parts of a page."""
    return "\n\n".join(
        f"## [{plain(box.section)}](#{box.cell})\n\n{apart(box.text)}" for box in found
    )


# ------------------------------------------------------------ what the pages show


def cells_of(path: Path) -> list[dict]:
    """Return the cells of a notebook, each source as one string."""
    cells = json.loads((COURSE / path).read_text("utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


def outputs(paths: list[Path]) -> dict[str, str]:
    """Return what cells have printed, by the cell's id."""
    return {
        cell["id"]: "".join("".join(output.get("text", "")) for output in cell["outputs"])
        for path in paths
        for cell in cells_of(path)
        if cell["cell_type"] == "code"
    }


def chapters(paths: list[Path]) -> str:
    """Return a list of the notebooks with what each promises, and how long it runs."""
    lines = []
    for path in paths:
        opening = cells_of(path)[0]["source"]
        title = re.search(r"^# (.*)", opening, re.MULTILINE)
        promise = re.search(r"^> (.*)", opening, re.MULTILINE)
        if title and promise:
            time = re.search(r"\*\*Time:\*\* (.*?) to run", opening)
            runs = f" *Runs {time[1]}.*" if time else ""
            runs = runs.replace("Runs about", "Runs for about").replace("Runs under", "Runs in under")
            indent = "" if path.stem == path.parent.name else "  "
            lines.append(f"{indent}* [{title[1]}]({path.as_posix()}). {promise[1]}{runs}")
    return "\n".join(lines)


def further(paths: list[Path]) -> str:
    """Return the lists "Go further" of the notebooks."""
    parts = []
    for path in paths:
        text = "\n\n".join(c["source"] for c in cells_of(path) if c["cell_type"] == "markdown")
        found = re.search(r"^## Go further\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
        items = re.findall(r"^\* .*", found[1], re.MULTILINE) if found else []
        title = re.match(r"# (.*)", text)
        if items and title:
            parts.append(f"### [{title[1]}]({path.as_posix()})\n\n" + "\n".join(items))
    return "\n\n".join(parts)


def commands() -> dict[str, str]:
    """Return the README's commands, as blocks of code, by name."""
    readme = (COURSE / "README.md").read_text("utf-8")
    marked = r"<!-- command: (\w+) -->\n(```sh\n.*?\n```)"
    found = dict(re.findall(marked, readme, re.DOTALL))
    small = re.search(r"```sh\n[^`]*download\.pytorch\.org/whl/cpu\n```", readme)
    return found | ({"small": small[0]} if small else {})


def filled(page: str, paths: list[Path]) -> str:
    """Return a page of this folder with what is generated in its places."""
    made = {
        "terms": lambda: glossary(terms(paths)),
        "formulas": lambda: symbols(formulas(paths)),
        "notebooks": lambda: "\n".join(p.with_suffix("").as_posix() for p in paths),
        "chapters": lambda: chapters(paths),
        "further": lambda: further(paths),
    }
    for name, make in made.items():
        if f"<!-- {name} -->" in page:
            page = page.replace(f"<!-- {name} -->", make())
    for place, cell in re.findall(r"(<!-- output (.*?) -->)", page):
        page = page.replace(place, f"```text\n{outputs(paths)[cell].strip()}\n```")
    for place, name in re.findall(r"(<!-- command (.*?) -->)", page):
        page = page.replace(place, commands()[name])
    return page


# ----------------------------------------------------------------------- the site


def stage() -> None:
    """Write build/site-source: the pages of this folder, notebooks and their figures."""
    for folder in (SOURCE, STATIC):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    paths = notebooks()
    targets: set[str] = set()
    for page in HERE.glob("*.md"):
        text = filled(page.read_text("utf-8"), paths)
        targets |= set(re.findall(r"\(#(ch\w+-\w+)\)", text))
        (SOURCE / page.name).write_text(text, "utf-8")
    for path in paths:
        (SOURCE / path).parent.mkdir(exist_ok=True)
        figures = COURSE / path.parent / "figures"
        shutil.copytree(figures, SOURCE / path.parent / "figures", dirs_exist_ok=True)
        notebook = json.loads((COURSE / path).read_text("utf-8"))
        ready_for_reading(notebook, targets)
        (SOURCE / path).write_text(json.dumps(notebook), "utf-8")
    page = (COURSE / "shared/support/explore.html").read_text("utf-8")
    style, script = CODE_OF_EXPLORERS.search(page).groups()
    (STATIC / "explore.css").write_text(style, "utf-8")
    (STATIC / "explore.js").write_text(script, "utf-8")


# What themes and extensions write that screen readers stumble over.
MENDED = {
    ' aria-label="Toggle hidden content"': "",
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="The course">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="This page">',
    '<div id="search-results">': '<h1 class="hidden-title">Search</h1><div id="search-results">',
}


def mend() -> None:
    """Bring the pages to the state that tests/test_site.py wants."""
    for page in SITE.rglob("*.html"):
        text = page.read_text("utf-8")
        for old, new in MENDED.items():
            text = text.replace(old, new)
        page.write_text(text, "utf-8")
    shutil.rmtree(SITE / "_sources", ignore_errors=True)
    shutil.rmtree(BUILD / "jupyter_execute", ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    """Run the program; return 0 if Sphinx has nothing to complain about."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.parse_args(argv)
    stage()
    shutil.rmtree(SITE, ignore_errors=True)
    doctrees = BUILD / "site-doctrees"
    shutil.rmtree(doctrees, ignore_errors=True)
    options = ["-W", "--keep-going", "-q", "-c", str(HERE), "-d", str(doctrees)]
    failed = sphinx_build([*options, str(SOURCE), str(SITE)])
    if not failed:
        mend()
        shutil.make_archive(str(SITE), "zip", SITE)
        print(f"open {SITE / 'index.html'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
