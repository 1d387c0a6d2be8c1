"""Slides of every notebook, for build.py: reveal.js out of a wheel, no network.

Where a slide begins is read off the text, so notebooks carry no marks for it: a section
with its question, a figure, a formula, a table, a prediction (what to compare it with
stays folded until the room has voted), code, output, answer. Other prose becomes the
speaker's notes: press S.
"""

import ast
import base64
import hashlib
import re
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import sphinx_revealjs
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pages import COURSE, SENTENCES, apart, cells_of, plain
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

MOST_CODE, MOST_OUTPUT, MOST_PARTS = 15, 18, 3  # lines, lines, slides
PROSE, TABLE = 88, 130  # most characters of a line that is printed
BOTH = 20  # lines of code and output that share a slide
BESIDE = {"<img": 3, "explorer": 8}  # lines of code beside what can be seen
MOST_TEXT = 600  # characters of a list on a slide
ENDINGS = ("What this chapter exports", "Go further")
QUIZ = "Five questions"  # a slide each, with its options
DRAWS = re.compile(
    r"(plt|ax|axes|fig|torch\.testing|use_course_style)\b|"
    r"\w+(\[.+?\])?\.(plot|text|set|set_title|annotate|bar|barh|hist|imshow|tight_layout)\("
)
FOLD = re.compile(r"<details>.*?</details>", re.DOTALL)
IS_CLASS = re.compile("class ")
REVEAL = (
    "dist/reset.css",
    "dist/reveal.css",
    "dist/reveal.js",
    "plugin/notes/notes.js",
)

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="reveal/reset.css">
<link rel="stylesheet" href="reveal/reveal.css">
<link rel="stylesheet" href="../_static/explore.css">
<link rel="stylesheet" href="../_static/slides.css">
</head>
<body>
<div class="reveal"><div class="slides">
{slides}
</div></div>
<script src="reveal/reveal.js"></script>
<script src="reveal/notes.js"></script>
<script src="../_static/explore.js"></script>
<script src="../_static/slides.js"></script>
</body>
</html>
"""


@dataclass
class Slide:
    """What stands on a slide as HTML, and what is said about it."""

    kind: str
    parts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def html(self) -> str:
        notes = "\n".join(self.notes)
        aside = f'<aside class="notes">{notes}</aside>' if notes else ""
        body = "\n".join(self.parts)
        return f'<section class="{self.kind}">\n{body}\n{aside}</section>'


def markdown() -> MarkdownIt:
    """Return a reader of Markdown that writes formulas as MathML."""
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    dollarmath_plugin(
        reader,
        renderer=lambda tex, options: convert(
            tex, display="block" if options["display_mode"] else "inline"
        ),
    )
    return reader


READ = markdown()


def to_html(text: str, path: Path) -> str:
    """Return Markdown as HTML, its figures and notebooks under the deck's names."""
    text = re.sub(r"\]\(figures/", f"](figures/{path.parent.name}/", apart(text))
    page = rf"](../{path.parent.name}/\1.html)"  # exercises have no deck
    text = re.sub(r"\]\((ch\d\d_exercises)\.ipynb\)", page, text)
    text = re.sub(r"\]\((?:[^)\s]*/)?(ch\w+)\.ipynb\)", r"](\1.html)", text)
    return READ.render(text)


def blocks_of(source: str) -> list[str]:
    """Split a text into paragraphs, lists, tables and folds."""
    folds = FOLD.findall(source)
    source = FOLD.sub("\n\n\0\n\n", source)
    source = re.sub(r"^(#+ .*)$", r"\n\1\n", source, flags=re.MULTILINE)
    parts = [part for part in re.split(r"\n\s*\n", source) if part.strip()]
    return [folds.pop(0) if part.strip() == "\0" else part.strip() for part in parts]


def batched(lines: list[str], size: int) -> list[list[str]]:
    """Return lines in groups; a last one of a line or two stays with the others."""
    n = max(1, round(len(lines) / size + 0.3))
    size = -(-len(lines) // n)
    return [lines[i : i + size] for i in range(0, len(lines), max(1, size))]


def parts_of(items: str) -> list[str]:
    """Split a list into lists of about equal length that fit on a slide."""
    n = -(-len(items) // MOST_TEXT)
    parts = [""]
    for item in re.split(r"\n(?=[*-] |\d+\. )", items):
        if parts[-1] and len(parts[-1]) + len(item) / 2 > len(items) / n:
            parts.append("")
        parts[-1] += f"{item}\n"
    return parts


def is_silent(node: ast.stmt) -> bool:
    """Return whether a statement only imports, asserts, or draws."""
    if isinstance(node, ast.For):
        return 2 * sum(map(is_silent, node.body)) > len(node.body)
    if isinstance(node, ast.With) or (isinstance(node, ast.If) and not node.orelse):
        return all(map(is_silent, node.body))
    if isinstance(node, ast.Expr):
        return bool(DRAWS.match(ast.unparse(node)))
    if isinstance(node, ast.Assign):
        return bool(re.match(r"(plt|ax|axes|fig)\.", ast.unparse(node.value)))
    return isinstance(node, ast.Import | ast.ImportFrom | ast.Assert)


def asserts(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the assertions of a cell that its code can do without."""
    for node in ast.walk(tree):
        body = getattr(node, "body", [])
        if not isinstance(body, list):  # a lambda
            continue
        found = [n for n in body if isinstance(n, ast.Assert)]
        if len(found) < len(body):
            yield from found


def without(source: str, nodes: list) -> str:
    """Return code without some of its statements, and without gaps."""
    gone = {n for node in nodes for n in range(node.lineno, node.end_lineno + 1)}
    lines = [line for n, line in enumerate(source.split("\n"), 1) if n not in gone]
    text = re.sub(r"(?m) *# (fmt|type|noqa):.*$|^#\|.*\n", "", "\n".join(lines))
    return re.sub(r"\n{2,}(?= |\Z)", "\n", re.sub(r"\n{3,}", "\n\n", text)).strip()


def point(source: str) -> str:
    """Return what a cell is about: no imports, no assertions, no plot's clothes."""
    tree = ast.parse(source)
    silent = [node for node in tree.body if is_silent(node)]
    return without(source, [*silent, *asserts(tree)])


def outline(lines: list[str]) -> Iterator[str]:
    """Yield a function's or a class's signatures, and the lines that are new."""
    last, signature, described = "", "", False  # one that is going on; right after one
    member = r"    \w+: " if any(map(IS_CLASS.match, lines)) else "(?!)"
    for line in lines:
        if signature:  # over several lines: one
            signature += ("" if signature.endswith("(") else " ") + line.strip()
        elif re.match(r"\s*(class|def) ", line):
            signature = line
        elif re.search(rf"^\s*@|# new$|^{member}", line) or (
            described and '"""' in line
        ):
            last = f'{line}"""' if line.count('"""') == 1 else line  # its first line
            yield last
        elif line.strip() and last.strip() != "…":
            yield (last := " " * (len(line) - len(line.lstrip())) + "…")
        described = bool(signature) and line.endswith(":")
        if described:
            signature = signature.replace(", )", ")").replace(" )", ")")
            inset = " " * (len(signature) - len(signature.lstrip()) + 8)
            yield from textwrap.wrap(signature, 88, subsequent_indent=inset)
            last, signature = signature, ""


def short(source: str) -> str:
    """Return code that fits on a slide: all, or outlines of what it defines."""
    body = ast.parse(source).body
    holders = ast.Module | ast.ClassDef | ast.FunctionDef
    found = [n for n in ast.walk(ast.parse(source)) if isinstance(n, holders)]
    told = [node.body[0] for node in found if node.body and ast.get_docstring(node)]
    for text in source, without(source, told):
        if text.count("\n") < MOST_CODE:
            return text
    kept: list[str] = []
    lines = source.split("\n")
    for node in body:
        defines = isinstance(node, ast.ClassDef | ast.FunctionDef)
        first = [d.lineno for d in getattr(node, "decorator_list", [])] or [node.lineno]
        part = lines[first[0] - 1 : node.end_lineno]
        kept += outline(part) if defines else part
    if len(kept) > MOST_CODE:  # then without what the functions say of themselves
        kept = [line for line in kept if '"""' not in line]
    return "\n".join(kept if len(kept) <= MOST_CODE else [*kept[:14], "…"])


class Deck:
    """The slides of one notebook."""

    def __init__(self, path: Path, target: Path):
        self.path, self.target = path, target
        self.slides: list[Slide] = []
        self.heading = self.lead = ""
        self.skipping = self.asked = False
        cells = cells_of(path)
        self.title = plain(cells[0]["source"].partition("\n")[0].lstrip("# "))
        for cell in cells:
            if cell["cell_type"] == "markdown":
                for block in blocks_of(cell["source"]):
                    self.text(block)
            elif not self.skipping:
                self.code(cell)
        if self.waits():
            self.slides.pop()

    def waits(self) -> bool:
        """Return whether the last slide has nothing but headings yet."""
        parts = self.slides[-1].parts if self.slides else ["none"]
        return all(part.startswith(("<h2", "<h3")) for part in parts)

    def add(self, kind: str, *parts: str) -> None:
        """Begin a slide, under the heading of its section."""
        if self.waits():
            self.slides[-1].kind = kind
            self.slides[-1].parts += parts
            return
        head = f'<p class="head">{escape(self.heading)}</p>' if self.heading else ""
        self.slides.append(Slide(kind, [head, *parts]))

    def text(self, block: str) -> None:
        """Put a paragraph on a slide of its own, on the last one, or in the notes."""
        html = to_html(block, self.path)
        if block.startswith("# "):
            self.slides.append(Slide("title", [html]))
        elif block.startswith("#"):
            self.heading = plain(block.lstrip("# "))
            if block.startswith("## "):
                self.skipping = self.heading in ENDINGS
            if self.skipping:
                return
            if self.waits():
                self.slides[-1].parts.append(html)
            else:
                self.slides.append(Slide("section", [html]))
        elif self.skipping:
            return
        elif len(self.slides) == 1 and re.match(r">|!.*here\.svg|\*", block):
            self.slides[0].parts.append(html)
        elif block.startswith("**Question:**"):
            self.slides[-1].parts.append(html)
        elif block.startswith("**Prediction:**"):
            self.asked = True
            self.add("prediction", html)
        elif block.startswith("<details"):
            predicted = self.asked and self.slides[-1].kind == "prediction"
            if predicted or self.heading == QUIZ:
                self.slides[-1].parts.append(html)
            else:
                self.add("fold", html)
        elif block.startswith("**Answer:**"):
            self.add("answer", html)
        elif block.startswith(("![", "> **", "|")):
            on_prediction = self.asked and block.startswith("|")
            if on_prediction and self.slides[-1].kind == "prediction":
                self.slides[-1].parts.append(html)
            else:
                self.add("figure", html)
        elif re.match(r"([*-]|\d+\.) ", block):
            for part in parts_of(block):
                self.add("list", self.lead, to_html(part, self.path))
                self.lead = ""
        else:
            self.slides[-1].notes.append(html)
            last = SENTENCES.split(" ".join(block.split()))[-1]
            if re.search(r"[\w:]$", last):  # it goes on in what follows
                self.lead = to_html(last, self.path)
                return
        self.lead = ""

    def code(self, cell: dict) -> None:
        """Put code on a slide, and what it shows on the same one or the next."""
        hidden = cell["metadata"].get("jupyter", {}).get("source_hidden")
        if hidden or "export.main" in cell["source"]:
            return
        code = short(point(cell["source"]))
        shown = [
            html for output in cell["outputs"] for html in self.output(output, cell)
        ]
        lines = code.count("\n") + 1
        if not shown and "assert" in cell["source"] and lines <= 3:
            return  # a check of what stands above
        size = lines + sum(html.count("\n") + 1 for html in shown)
        seen = [most for what, most in BESIDE.items() if what in "".join(shown)]
        together = lines <= seen[0] if seen else size <= BOTH
        if code:
            lexed = highlight(code, PythonLexer(), HtmlFormatter(cssclass="source"))
            self.add("code", lexed)
            if together:  # on the next key, when the room has been asked
                show = '<div class="fragment">{}</div>' if self.asked else "{}"
                self.slides[-1].parts += [show.format(html) for html in shown]
                shown = []
        for html in shown:
            self.add("output", html)
        self.asked = False

    def output(self, output: dict, cell: dict) -> list[str]:
        """Return an output as HTML: a picture, a table, or a text's first lines."""
        data = output.get("data", {})
        if "image/png" in data:
            png = base64.b64decode("".join(data["image/png"]))
            name = f"{hashlib.sha256(png).hexdigest()}.png"
            if not (self.target.parent / "_images" / name).is_file():
                (self.target / name).write_bytes(png)
            else:
                name = f"../_images/{name}"
            alt = escape(cell["metadata"].get("alt", "a plot"))
            return [f'<img src="{name}" alt="{alt}">']
        if "text/html" in data:
            looks = r"<style.*?</style>|<script.*?</script>"
            html = "".join(data["text/html"])
            return [re.sub(looks, "", html, flags=re.DOTALL)]
        text = "".join(output.get("text", data.get("text/plain", ""))).strip("\n")
        lines = [
            part
            for line in text.split("\n")
            if "%|" not in line  # a progress bar
            for part in textwrap.wrap(
                line, TABLE if "  " in line else PROSE, drop_whitespace=False
            )
            or [""]
        ]
        parts = ["\n".join(part) for part in batched(lines, MOST_OUTPUT)]
        if len(parts) > MOST_PARTS:
            parts = [*parts[: MOST_PARTS - 1], f"{parts[MOST_PARTS - 1]}\n…"]
        return [f"<pre>{escape(part)}</pre>" for part in parts if part.strip()]

    def html(self) -> str:
        slides = "\n".join(slide.html() for slide in self.slides)
        return PAGE.format(title=escape(self.title), slides=slides)


def write_decks(paths: list[Path], site: Path) -> None:
    """Write site/slides: a page for each notebook, and what all of them need."""
    target = site / "slides"
    (target / "reveal").mkdir(parents=True)
    package = Path(sphinx_revealjs.__file__).parent / "_static/revealjs"
    for name in (*REVEAL, "LICENSE"):
        shutil.copy(package / name, target / "reveal" / Path(name).name)
    for path in paths:
        figures = COURSE / path.parent / "figures"
        copy = target / "figures" / path.parent.name
        shutil.copytree(figures, copy, dirs_exist_ok=True)
        (target / f"{path.stem}.html").write_text(Deck(path, target).html(), "utf-8")
