"""Build the reading site: python .site/build.py

It writes build/site and a zip of it, without a network. The site is the notebooks as
they are stored, with the pages of this folder. They are copied to build/site-source
first, where each notebook is made ready for reading: what would give a prediction away
is folded, plots get the descriptions that their cells carry, and cells that others link
to get a name.
"""

import json
import re
import shutil
import sys
from pathlib import Path

from pages import COURSE, HERE, apart, filled, lessons, notebooks, teaching
from slides import write_decks
from sphinx.cmd.build import main as sphinx_build

BUILD = COURSE / "build"
SOURCE, STATIC, SITE = (BUILD / name for name in ("site-source", "site-static", "site"))

LINK_TO_CELL = re.compile(r"\((?:[^()\s]+\.ipynb)?#(ch\w+-\w+)\)")
LOOKS = re.compile(r"<style>(.*?)</style>\s*<script>(.*?)</script>", re.DOTALL)
EMPTY_HEADER = re.compile(r"<th>(?:</th>)?\s*(?=<th)")

# What the theme and MyST-NB write that readers with a screen reader stumble over.
MENDED = {
    '<th class="head"><p></p></th>': "<td></td>",
    ' aria-label="Toggle hidden content"': "",
    '<p class="caption" role="heading"': '<p class="caption" role="heading" '
    'aria-level="2"',
    '<aside class="sidebar-drawer"': '<aside class="sidebar-drawer" '
    'aria-label="The course"',
    '<aside class="toc-drawer"': '<aside class="toc-drawer" aria-label="This page"',
    '<div id="search-results">': '<h1 class="hidden-title">Search</h1>'
    '<div id="search-results">',
}


def named(source: str, name: str) -> str:
    r"""Put a name before the first heading of a text, else before its first paragraph.

    >>> named("**Answer:** yes.\n\n## Next", "here")
    '**Answer:** yes.\n\n(here)=\n## Next'
    """
    found = re.search(r"^#+ ", source, re.MULTILINE)
    found = found or re.search(r"^[^<\s]", source, re.MULTILINE)
    at = found.start() if found else 0
    return f"{source[:at]}({name})=\n{source[at:]}"


def at_home(text: str) -> str:
    """Return a page whose links lead through the repository with the site's links.

    >>> at_home("[1.2](../ch01_intro/ch01_intro.ipynb#ch01-102), [start](start.md)")
    '[1.2](#ch01-102), [start](start.md)'
    """
    text = LINK_TO_CELL.sub(r"(#\1)", text)
    return text.replace("](../ch", "](ch").replace("](../.site/", "](../")


def make_ready(notebook: dict, targets: set[str]) -> None:
    """Fold what is asked for, describe plots, name the cells that others link to."""
    asked = False
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            asked = "**Prediction:**" in source
            if cell["id"] in targets:
                source = named(source, cell["id"])
            cell["source"] = apart(source)
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
            if html := "".join(output.get("data", {}).get("text/html", "")):
                # The explorers' style and script stand once in static files.
                html = EMPTY_HEADER.sub("<td></td>", LOOKS.sub("", html))
                output["data"]["text/html"] = html


def stage() -> None:
    """Write build/site-source: the pages of this folder, notebooks, their figures."""
    for folder in (SOURCE, STATIC):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    paths = notebooks()
    targets: set[str] = set()
    own = [page.relative_to(HERE) for page in HERE.glob("*.md")]
    for folder, page in [(HERE, p) for p in own] + [(COURSE, p) for p in teaching()]:
        text = at_home(filled((folder / page).read_text("utf-8"), paths))
        targets |= set(LINK_TO_CELL.findall(text))
        (SOURCE / page).parent.mkdir(exist_ok=True)
        (SOURCE / page).write_text(text, "utf-8")
    for path in paths:
        figures = COURSE / path.parent / "figures"
        shutil.copytree(figures, SOURCE / path.parent / "figures", dirs_exist_ok=True)
        notebook = json.loads((COURSE / path).read_text("utf-8"))
        make_ready(notebook, targets)
        (SOURCE / path).write_text(json.dumps(notebook), "utf-8")
    explorers = (COURSE / "shared/support/explore.html").read_text("utf-8")
    for name, text in zip(("css", "js"), LOOKS.findall(explorers)[0], strict=True):
        (STATIC / f"explore.{name}").write_text(text, "utf-8")


def mend(page: Path) -> None:
    """Bring a page of the site to the state that tests/test_site.py wants."""
    text = page.read_text("utf-8")
    for old, new in MENDED.items():
        text = text.replace(old, new)
    page.write_text(text, "utf-8")


def main() -> int:
    """Run the program; return 0 if Sphinx has nothing to complain about."""
    stage()
    doctrees = BUILD / "site-doctrees"
    for folder in (SITE, doctrees):
        shutil.rmtree(folder, ignore_errors=True)
    options = ["-W", "--keep-going", "-q", "-c", str(HERE), "-d", str(doctrees)]
    failed = sphinx_build([*options, str(SOURCE), str(SITE)])
    if not failed:
        for page in SITE.rglob("*.html"):
            mend(page)
        for folder in (SITE / "_sources", BUILD / "jupyter_execute"):
            shutil.rmtree(folder, ignore_errors=True)
        write_decks(lessons(notebooks()), SITE)
        shutil.make_archive(str(SITE), "zip", SITE)
        print(f"open {SITE / 'index.html'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
