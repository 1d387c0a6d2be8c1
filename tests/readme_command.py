"""Print one of the README's two commands, so that machines run what readers paste.

python3 tests/readme_command.py open|test
"""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def readme_command(name: str, page: Path = README) -> str:
    """Return the block of a page after the comment `<!-- command: NAME -->`."""
    pattern = rf"<!-- command: {name} -->\s*```\w+\n(.*?)```"
    if not (found := re.findall(pattern, page.read_text(encoding="utf-8"), re.DOTALL)):
        raise SystemExit(f"{page.name} has no command named {name!r}")
    return found[0].strip()


if __name__ == "__main__":
    print(readme_command(sys.argv[1]))
