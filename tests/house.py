"""Draw which module of `shared` uses which, for the README, from the imports.

python tests/house.py prints the diagram (Mermaid, which GitHub and JupyterLab draw).
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


def diagram() -> str:
    """Return the diagram; an arrow that follows from others is left out."""
    order = reading_order()
    uses = {topic: imports_of(topic) for _, topic in order}
    lines = ["graph LR"]
    for folder in dict.fromkeys(folder for folder, _ in order):
        lines.append(f"  subgraph {folder}")
        lines += [f"    {topic}" for chapter, topic in order if chapter == folder]
        lines.append("  end")
    for _, topic in order:
        indirect = set().union(*(all_below(below, uses) for below in uses[topic]))
        direct = uses[topic] - indirect
        lines += [f"  {topic} --> {below}" for _, below in order if below in direct]
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())
