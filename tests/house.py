"""Tell which module of `shared` uses which, from the imports.

python tests/house.py prints the table that stands in .site/contributing.md.
"""

import ast

from shared.support import COURSE
from shared.support.export import find_notebooks, topic_of


def reading_order() -> list[tuple[str, str]]:
    """Return (chapter's folder, module's name) of every lesson, in reading order."""
    return [(path.parent.name, topic_of(path)) for path in find_notebooks()]


def imports_of(topic: str) -> set[str]:
    """Return the lessons that a lesson's module imports."""
    tree = ast.parse((COURSE / "shared" / f"{topic}.py").read_text(encoding="utf-8"))
    modules = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    topics = {name for _, name in reading_order()}
    return {str(m).removeprefix("shared.") for m in modules} & topics


def all_below(topic: str, uses: dict[str, set[str]]) -> set[str]:
    """Return everything that a lesson rests on, directly or not."""
    found = set(uses[topic])
    for below in uses[topic]:
        found |= all_below(below, uses)
    return found


def table() -> str:
    """Return the table; what a lesson rests on by way of another one is left out."""
    order = reading_order()
    uses = {topic: imports_of(topic) for _, topic in order}
    lines = ["| chapter | module | rests on |", "|---|---|---|"]
    for folder, topic in order:
        indirect = set().union(*(all_below(below, uses) for below in uses[topic]))
        direct = [f"`{t}`" for _, t in order if t in uses[topic] - indirect]
        lines.append(f"| {folder} | `{topic}` | {', '.join(direct)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
