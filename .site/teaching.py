"""What only teachers use of the exercises and questions.

    python .site/teaching.py --table handed_in/*.ipynb    CSV: who is stuck on what
    python .site/teaching.py --nbgrader FOLDER            nbgrader's source notebooks
    python .site/teaching.py --gift                       all quizzes in Moodle's GIFT

`--table` runs what was handed in: do it in an account or a container of its own.
"""

import re
import sys
from pathlib import Path

COURSE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(COURSE))

from shared.support import read_json  # noqa: E402

FOLD = re.compile(
    r"<details><summary>Solution (\S+)</summary>\s*```python\n(.*?)```\s*</details>\s*",
    re.DOTALL,
)


def prose(notebook: Path) -> str:
    """Return all text of a notebook's markdown cells."""
    cells = read_json(notebook)["cells"]
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    return "\n\n".join(texts)


def solutions(notebook: Path) -> dict[str, str]:
    """Return the folded solutions of an exercise notebook, each as its stub's cell."""
    found = FOLD.findall(prose(notebook))
    return {number: f"# Exercise {number}\n{code}" for number, code in found}
