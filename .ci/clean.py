"""The form in which notebooks are stored: `python -m shared.support.export --clean`.

It undoes what JupyterLab and nbconvert add to a notebook, so that a line that was
edited is a line that differs.
"""

import json
import re
from itertools import groupby
from pathlib import Path

from shared.support import read_json, write_whole

KERNEL = dict(display_name="Python 3 (ipykernel)", language="python", name="python3")


def clean_outputs(outputs: list[dict]) -> list[dict]:
    """Return the outputs of a cell as they are stored.

    Consecutive pieces of one stream are joined, and of a line that a progress bar wrote
    again and again, the last state stays. Metadata goes.
    """
    cleaned: list[dict] = []
    for stream, pieces in groupby(outputs, lambda output: output.get("name")):
        if stream is None:
            cleaned += pieces
            continue
        text = "".join("".join(piece["text"]) for piece in pieces)
        text = re.sub(r"[^\n]*\r", "", text.replace("\r\n", "\n"))
        if lines := text.splitlines(keepends=True):
            cleaned.append({"output_type": "stream", "name": stream, "text": lines})
    return [o | {"metadata": {}} if "metadata" in o else o for o in cleaned]


def clean(path: Path) -> str:
    """Bring a notebook to the form in which it is stored; say what was done."""
    notebook = read_json(path)
    notebook["metadata"] = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for cell in notebook["cells"]:
        metadata = cell["metadata"]
        cell["metadata"] = {"tags": metadata["tags"]} if metadata.get("tags") else {}
        if metadata.get("jupyter", {}).get("source_hidden"):
            cell["metadata"]["jupyter"] = {"source_hidden": True}
        source = "".join(cell["source"]).rstrip("\n")
        cell["source"] = source.splitlines(keepends=True)
        if cell["cell_type"] == "code":
            cell["outputs"] = clean_outputs(cell["outputs"])
    text = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    if text == path.read_text(encoding="utf-8"):
        return "is clean"
    write_whole(path, text)
    return "cleaned"
