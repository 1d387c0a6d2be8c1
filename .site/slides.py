"""Slides of every notebook, for build.py: reveal.js out of a wheel, no network.

Where a slide begins is read off the text, so notebooks carry no marks for it: a section
with its question, a figure, a formula, a table, a prediction (what to compare it with
stays folded until the room has voted), code, output, answer. Other prose becomes the
speaker's notes: press S.
"""

import base64
import hashlib
import re
import shutil
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import sphinx_revealjs
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pages import COURSE, apart, cells_of, plain
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

MOST_CODE, MOST_OUTPUT, MOST_WIDTH = 15, 18, 100  # lines, lines, characters
BOTH = 20  # lines of code and output that share a slide
ENDINGS = ("What this chapter exports", "Go further", "Experiments", "Try it yourself")
QUIZ = "Five questions"  # a slide each, with its options
DEFINES = r"(?m)^(class|def) "
FOLD = re.compile(r"<details>.*?</details>", re.DOTALL)
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


def short(source: str) -> str:
    """Return code that fits on a slide: all, or its signatures and what is new."""
    lines = [line for line in source.split("\n") if not line.startswith("#|")]
    if len(lines) <= MOST_CODE:
        return "\n".join(lines).strip()
    kept: list[str] = []
    signature = described = False  # in a signature; right after one
    for line in lines:
        signature = signature or bool(re.match(r"\s*(class|def|@)", line))
        if signature or (described and '"""' in line) or line.endswith("# new"):
            kept.append(line)
        elif kept and line.strip() and kept[-1].strip() != "…":
            kept.append(" " * (len(line) - len(line.lstrip())) + "…")
        described = signature and line.endswith(":")
        signature = signature and not described and "@" not in line
    return "\n".join(kept[:MOST_CODE])


class Deck:
    """The slides of one notebook."""

    def __init__(self, path: Path, target: Path):
        self.path, self.target = path, target
        self.slides: list[Slide] = []
        self.heading = ""
        self.skipping = self.asked = False
        cells = cells_of(path)
        self.title = plain(cells[0]["source"].partition("\n")[0].lstrip("# "))
        for cell in cells:
            if cell["cell_type"] == "markdown":
                for block in blocks_of(cell["source"]):
                    self.text(block)
            elif not self.skipping:
                self.code(cell)

    def add(self, kind: str, *parts: str) -> None:
        """Begin a slide, under the heading of its section."""
        if self.slides[-1].kind == "subsection":  # a heading that still waits
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
            if not self.skipping:
                kind = "section" if block.startswith("## ") else "subsection"
                self.slides.append(Slide(kind, [html]))
        elif self.skipping:
            return
        elif len(self.slides) == 1 and block.startswith((">", "!", "*")):
            title = self.slides[0]
            title.parts.append(html)
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
        elif re.match(r"([*-]|\d+\.) ", block) and len(block) < 700:
            self.add("list", html)
        else:
            self.slides[-1].notes.append(html)

    def code(self, cell: dict) -> None:
        """Put code on a slide, and what it shows on the same one or the next."""
        hidden = cell["metadata"].get("jupyter", {}).get("source_hidden")
        if hidden or "export.main" in cell["source"]:
            return
        code = short(cell["source"])
        shown = [
            html for output in cell["outputs"] for html in self.output(output, cell)
        ]
        size = code.count("\n") + sum(html.count("\n") + 1 for html in shown)
        if code:
            lexed = highlight(code, PythonLexer(), HtmlFormatter(cssclass="source"))
            self.add("code", lexed)
            small = size <= BOTH and not re.search("<img|explorer", "".join(shown))
            if shown and small and not self.asked:
                self.slides[-1].parts += shown
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
        lines = [line[:MOST_WIDTH] for line in text.split("\n")]
        if len(lines) > MOST_OUTPUT:
            lines = [*lines[: MOST_OUTPUT - 1], "…"]
        return [f"<pre>{escape(chr(10).join(lines))}</pre>"] if text else []

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
