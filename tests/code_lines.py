"""Count lines of code, for the tests that keep cells and modules small."""

import ast


def lines_of_code(source: str) -> int:
    """Return the lines of code in `source`: no blanks, comments or docstrings."""
    lines = source.splitlines()
    code = {
        n
        for n, line in enumerate(lines, 1)
        if line.strip() and not line.strip().startswith("#")
    }
    holder = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, holder) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            last = docstring.end_lineno or docstring.lineno
            code -= set(range(docstring.lineno, last + 1))
    return len(code)
