"""Build the reading site and check it: python .site/check.py

No warning while building; every link leads somewhere; nothing is loaded from elsewhere;
every picture says what it shows. Then tests/test_site.py looks at every page in a
browser, where pytest, selenium and the course itself are installed.
"""

import os
import re
import subprocess
import sys
from html import unescape
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import build

LOADS = re.compile(
    r"<(?:script|img|link|iframe|source|video|audio|object)\b[^>]*?"
    r'\b(?:src|href|data)="((?:https?:)?//[^"]+)"'
)
STYLE_LOADS = re.compile(r"""(?:@import|url\()\s*["']?((?:https?:)?//[^"')]+)""")
LINK = re.compile(r'<[^>]+\b(?:href|src)="([^"]*)"')
IMAGE = re.compile(r"<img\b[^>]*>")


def problems(site: Path) -> tuple[list[str], int]:
    """Return what is wrong with the pages of a site, and how many links there are."""
    pages = {
        path: path.read_text("utf-8") for path in sorted(site.resolve().rglob("*.html"))
    }
    names = {path: set(re.findall(r'\bid="([^"]+)"', t)) for path, t in pages.items()}
    found, links = [], 0
    for path, text in pages.items():
        where = path.relative_to(site.resolve())
        found += [f"{where}: loads {url}" for url in LOADS.findall(text)]
        for image in IMAGE.findall(text):
            alt = re.search(r'\balt="([^"]*)"', image)
            if not alt or not alt[1] or re.search(r"\.(png|svg)$", alt[1]):
                found.append(f"{where}: {image} does not say what it shows")
        for target in map(unescape, LINK.findall(text)):
            if re.match(r"[a-z]+:", target):
                continue
            links += 1
            address, _, fragment = target.partition("#")
            file = path.parent / unquote(address.partition("?")[0]) if address else path
            if not file.is_file():
                found.append(f"{where}: {target} leads nowhere")
            elif fragment and unquote(fragment) not in names[file.resolve()]:
                found.append(f"{where}: {target} has no such place")
    for path in site.rglob("*.css"):
        loads = STYLE_LOADS.findall(path.read_text("utf-8"))
        found += [f"{path.name}: loads {url}" for url in loads]
    return found, links


def main() -> int:
    """Run the program; return 0 if nothing is wrong."""
    if failed := build.main():
        return failed
    found, links = problems(build.SITE)
    print(*found, sep="\n", end="\n" if found else "")
    pages = len(list(build.SITE.rglob("*.html")))
    megabytes = build.SITE.with_suffix(".zip").stat().st_size / 1e6
    print(
        f"{pages} pages, {links} links, {len(found)} problems; zip {megabytes:.1f} MB"
    )
    if not all(map(find_spec, ("pytest", "selenium", "torch"))):
        print(
            "the pages were not looked at in a browser: pip install -r requirements.txt"
        )
        return bool(found)
    tests = build.COURSE / "tests" / "test_site.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:nbval", "-o", "addopts="]
    environment = os.environ | {"LLM_COURSE_SITE": str(build.SITE)}
    done = subprocess.run([*command, str(tests)], cwd=build.COURSE, env=environment)
    return bool(found) or done.returncode


if __name__ == "__main__":
    sys.exit(main())
