"""Run every notebook from top to bottom; write the minutes into it and README.md.

    python tests/benchmarks/notebook_minutes.py [--check] [NOTEBOOK ...]

The notebooks' outputs are not touched, only the words behind **Time:** and the last
column of the README's chapter table. With --check nothing is written. Run it alone on
an idle machine with two cores (`taskset -c 0,1 python ...` makes it two).
"""

import argparse
import math
import re
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent.parent


def in_words(seconds: float) -> str:
    """Return a duration as the notebooks state it.

    >>> in_words(12), in_words(61)
    ('under 1 minute', 'about 2 minutes')
    """
    minutes = math.ceil(seconds / 60)
    return "under 1 minute" if minutes <= 1 else f"about {minutes} minutes"


def run(path: Path) -> float:
    """Run a copy of the notebook in its folder; return the seconds, start included."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=None, resources={"metadata": {"path": path.parent}}
    )
    start = time.perf_counter()
    client.execute()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of them")
    parser.add_argument("--check", action="store_true", help="measure and print only")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    for path in arguments.notebooks or sorted(ROOT.glob("ch*/*.ipynb")):
        seconds = run(path)
        words = in_words(seconds)
        print(f"{path.stem}: {seconds:.0f} s, {words}")
        if arguments.check:
            continue
        text = path.read_text(encoding="utf-8")
        text = re.sub(
            r"(\*\*Time:\*\* )(under 1 minute|about \d+ minutes)",
            rf"\g<1>{words}",
            text,
        )
        path.write_text(text, encoding="utf-8")
        row = rf"^(\|.*{re.escape(path.name)}.*\|)[^|]*\|$"
        table = re.sub(
            row, rf"\g<1> {words} |", readme.read_text(encoding="utf-8"), flags=re.M
        )
        readme.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
