"""What the test suite needs of pytest, from whatever folder it is started.

pyproject.toml names this plugin in its `addopts`. So it also holds for `pytest` in a
chapter's folder and for one notebook alone, where tests/conftest.py is not read.

The outputs of notebooks are compared with stored ones, so their kernels, which inherit
this environment, are kept from settings of the machine that would change them.
"""

import os
import re
from pathlib import Path

import pytest

from shared.support.export import is_original

os.environ.setdefault("LLM_COURSE_DEVICE", "cpu")
FOREIGN = "MPLBACKEND MATPLOTLIBRC PYTHONWARNINGS PYTHONDEVMODE PYTHONOPTIMIZE "
FOREIGN += "LLM_COURSE_JUDGE LLM_COURSE_JUDGE_MODEL OPENAI_API_KEY JPY_SESSION_NAME"
for _name in FOREIGN.split():
    os.environ.pop(_name, None)

QUICK_NOTEBOOKS = {"ch01_intro", "ch02_text_data", "ch03_attention"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave a reader's copies and answers alone, unless asked for by name, or in CI."""
    asked = {Path(arg).resolve() for arg in config.args}
    if collection_path.suffix != ".ipynb" or collection_path.resolve() in asked:
        return None
    inside = config.rootpath in collection_path.parents
    own = inside and not is_original(collection_path)
    if inside and collection_path.stem.endswith("_exercises"):
        text = collection_path.read_text("utf-8", errors="replace")
        own = own or bool(re.search("[\u2713\u2717] Exercise", text))
    return True if own and os.environ.get("CI") != "true" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cells of all notebooks but three as slow: a notebook runs as a whole."""
    for item in items:
        notebook = Path(item.path).suffix == ".ipynb"
        if notebook and Path(item.path).stem not in QUICK_NOTEBOOKS:
            item.add_marker("slow")
