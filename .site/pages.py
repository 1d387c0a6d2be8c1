"""What the site's own pages show, gathered from the notebooks and the README.

A page of this folder holds places such as `<!-- terms -->`; `filled` puts there what is
generated.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
COURSE = HERE.parent

NOTEBOOK = re.compile(r"(ch\d\d)_\w+/\1_\w+\.ipynb")
BOLD = re.compile(r"\*\*(.+?)\*\*", re.DOTALL)
LABEL = re.compile(r"(Question|Answer|Prediction|In the papers.*|\w.*[:.])")
FOLD = re.compile(r"<details.*?</details>", re.DOTALL)
ITEMS = re.compile(r"\n(?=#|[|>]|\s*[-*] |\s*\d+\. )")  # lines that begin anew
SENTENCES = re.compile(r"(?<=[.!?)])\s+(?=[A-Z\"*`$(])")
LEANS = re.compile(
    r"(This|It|Its|Such|So|Each|These|They|That|There|Then|Here|And|Or|But|Every)\b"
)
DISPLAYED = re.compile(r"(\$\$[^$]+\$\$)")


def notebooks() -> list[Path]:
    """List the notebooks in reading order: a chapter's own, the others, exercises."""
    found = [path.relative_to(COURSE) for path in COURSE.glob("ch*/*.ipynb")]
    found = [path for path in found if NOTEBOOK.fullmatch(path.as_posix())]

    def order(path: Path) -> tuple:
        exercises = path.stem.endswith("_exercises")
        return path.stem[:4], exercises, path.stem != path.parent.name, path.stem

    return sorted(found, key=order)


def lessons(paths: list[Path]) -> list[Path]:
    """Return the notebooks without the exercises."""
    return [path for path in paths if not path.stem.endswith("_exercises")]


def teaching() -> list[Path]:
    """List the pages for teachers, chNN_teaching.md beside a chapter's notebooks."""
    found = sorted(COURSE.glob("ch*/ch??_teaching.md"))
    return [path.relative_to(COURSE) for path in found]


def docnames(paths: list[Path]) -> str:
    """Return pages as the lines of a table of contents."""
    return "\n".join(path.with_suffix("").as_posix() for path in paths)


def cells_of(path: Path) -> list[dict]:
    """Return the cells of a notebook, the source of each as one string."""
    cells = json.loads((COURSE / path).read_text("utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


def texts_of(path: Path) -> list[dict]:
    """Return the cells of a notebook that are text."""
    return [cell for cell in cells_of(path) if cell["cell_type"] == "markdown"]


def plain(markdown: str) -> str:
    """Return a heading without its markup."""
    return re.sub(r"[*`]", "", markdown)


def apart(source: str) -> str:
    r"""Put each displayed formula on lines of its own, as MyST wants it.

    >>> apart("> Written $$x$$ with x.")
    '> Written\n>\n> $$x$$\n>\n> with x.'
    """
    lines: list[str] = []
    for line in source.split("\n"):
        mark = ">" if line.startswith(">") else ""
        parts = [part.strip() for part in DISPLAYED.split(line.removeprefix(mark))]
        if len(parts) == 1:
            lines.append(line)
            continue
        for part in filter(None, parts):
            if lines and lines[-1].strip("> "):
                lines.append(mark)
            lines.append(f"{mark} {part}".strip())
        if not parts[-1]:
            lines.append(mark)
    return "\n".join(lines)


# ------------------------------------------------------------ glossary and formulas


class Place(NamedTuple):
    """A term or a formula, what is said of it, and where."""

    name: str
    text: str
    section: str
    cell: str


def paragraphs(paths: list[Path]) -> Iterator[Place]:
    """Yield every paragraph of the notebooks that is not folded."""
    for path in paths:
        section = ""
        for cell in texts_of(path):
            for text in re.split(r"\n\s*\n", FOLD.sub("", cell["source"])):
                if heading := re.search(r"^## (.*)", text, re.MULTILINE):
                    section = plain(heading[1])
                yield Place("", text, section, cell["id"])


def advice() -> tuple[set[str], dict[str, tuple[str, str]]]:
    """Read terms.txt: what is bold and no term, and what is said in other words."""
    lines = (HERE / "terms.txt").read_text("utf-8").splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    skip = {line[2:].lower() for line in lines if line.startswith("- ")}
    told = [line.split(": ", 1) for line in lines if not line.startswith("- ")]
    return skip, {name.lower(): (name, text) for name, text in told}


def bold(place: Place) -> Iterator[Place]:
    """Yield the words in bold of a paragraph, each with its sentence."""
    for item in ITEMS.split(place.text):
        text = re.sub(r"^([-*>]|\d+\.) ", "", " ".join(item.split()))
        sentences = [] if text.startswith(("#", "|")) else SENTENCES.split(text)
        for n, sentence in enumerate(sentences):
            for name in BOLD.findall(sentence):
                said = sentence
                if n and (LEANS.match(sentence) or len(sentence) < 50):
                    said = f"{sentences[n - 1]} {sentence}"
                said = said.replace("**", "").removesuffix(":")
                label = LABEL.fullmatch(name)
                if sentence.startswith("**") and name[1:].islower():
                    name = name.lower()
                if not label and len(name.split()) <= 4:
                    yield place._replace(name=name, text=said)


def terms(paths: list[Path]) -> list[Place]:
    """Find the words in bold, each where it is first used."""
    skip, told = advice()
    found: dict[str, Place] = {}
    for term in [term for place in paragraphs(lessons(paths)) for term in bold(place)]:
        low = term.name.lower()
        name, text = told.get(low, (term.name, term.text))
        if low not in skip:  # "tokens" and "token" are one term
            found.setdefault(low.removesuffix("s"), term._replace(name=name, text=text))
    left = set(told) - {term.name.lower() for term in found.values()}
    if left:
        print(f"note: .site/terms.txt: nowhere in bold: {', '.join(sorted(left))}")
    return sorted(found.values(), key=lambda term: term.name.lower())


def glossary(paths: list[Path]) -> str:
    """Return the entries of the glossary, under their letters."""
    lines, letter = [], ""
    for term in terms(paths):
        if term.name[0].upper() != letter:
            letter = term.name[0].upper()
            lines.append(f"## {letter}")
        link = f"[{term.section or 'where it is used'}](#{term.cell})"
        lines.append(f"**{term.name}**: {term.text} ({link})")
    return "\n\n".join(lines)


def formulas(paths: list[Path]) -> str:
    """Return the boxes "In the papers this is written", under their sections."""
    return "\n\n".join(
        f"## [{place.section}](#{place.cell})\n\n{apart(place.text)}"
        for place in paragraphs(paths)
        if place.text.startswith("> **In the papers")
    )


# --------------------------------------------------------------- lists and outputs


def chapters(paths: list[Path]) -> str:
    """Return a list of the notebooks: what each promises, and how long it runs."""
    lines = []
    for path in paths:
        opening = cells_of(path)[0]["source"]
        title = re.search(r"^# (.*)", opening, re.MULTILINE)
        promise = re.search(r"^> (.*)", opening, re.MULTILINE)
        time = re.search(r"\*\*Time:\*\* (?:about )?(.*?) to run", opening)
        indent = "" if path.stem == path.parent.name else "  "
        line = f"{indent}* [{title[1] if title else path.stem}]({path.as_posix()})."
        line += f" {promise[1]}" if promise else ""
        lines.append(line + (f" *To run: {time[1]}.*" if time else ""))
    return "\n".join(lines)


def further(paths: list[Path]) -> str:
    """Return the lists "Go further" of the notebooks."""
    parts = []
    go_further = re.compile(r"^## Go further\n(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
    for path in paths:
        text = "\n\n".join(cell["source"] for cell in texts_of(path))
        found, title = go_further.search(text), re.match(r"# (.*)", text)
        items = re.findall(r"^\* .*", found[1], re.MULTILINE) if found else []
        if items and title:
            parts.append(f"### [{title[1]}]({path.as_posix()})\n\n" + "\n".join(items))
    return "\n\n".join(parts)


def decks(paths: list[Path]) -> str:
    """Return a list of links to the slides of the notebooks."""
    items = []
    for path in lessons(paths):
        title = cells_of(path)[0]["source"].partition("\n")[0].lstrip("# ")
        items.append(f'<li><a href="slides/{path.stem}.html">{plain(title)}</a></li>')
    return "\n".join(["<ul>", *items, "</ul>"])


def printed(paths: list[Path], cell_id: str) -> str:
    """Return what a cell has printed. Raises ValueError if there is no such cell."""
    for path in paths:
        for cell in cells_of(path):
            if cell["id"] == cell_id:
                texts = [output.get("text", "") for output in cell["outputs"]]
                return "".join("".join(text) for text in texts).strip()
    raise ValueError(f"a page wants the output of {cell_id}, and there is no such cell")


def command(name: str) -> str:
    """Return a block of commands of the README, by the comment that stands above it."""
    readme = (COURSE / "README.md").read_text("utf-8")
    marked = rf"<!-- command: {name} -->\n(```sh\n.*?\n```)"
    small = r"(```sh\n[^`]*download\.pytorch\.org/whl/cpu\n```)"
    found = re.search(small if name == "small" else marked, readme, re.DOTALL)
    if not found:
        raise ValueError(f"a page wants README.md's command {name}, which is not there")
    return found[1]


def filled(page: str, paths: list[Path]) -> str:
    """Return a page with what is generated in its places."""
    made = {
        "terms": glossary,
        "formulas": formulas,
        "chapters": chapters,
        "decks": decks,
        "further": further,
        "notebooks": docnames,
        "teaching": lambda paths: docnames(teaching()),
    }
    for place, name, argument in re.findall(r"(<!-- (\w+) ?([\w-]*) -->)", page):
        if name == "output":
            text = f"```text\n{printed(paths, argument)}\n```"
        else:
            text = command(argument) if name == "command" else made[name](paths)
        page = page.replace(place, text)
    return page
