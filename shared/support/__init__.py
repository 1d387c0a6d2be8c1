"""What helps the lessons and is not one; written by hand.

Here: where the course lies, and how its files are read and written. Nothing in it needs
PyTorch, so that programs without it start at once.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

COURSE = Path(__file__).resolve().parents[2]  # the top folder


def name_file(error: OSError, path: str | Path) -> None:
    """Let an error name the file where it names none, as that of a full disk does."""
    if error.errno and not error.filename:
        error.filename = str(path)


def write_whole(path: str | Path, data: str | bytes) -> None:
    """Write a file beside its place, then move it there: whole or not at all.

    Text is written as UTF-8, with line ends as they are.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
        os.replace(beside, path)
    except OSError as error:
        name_file(error, path)
        raise
    finally:
        beside.unlink(missing_ok=True)


def existing(path: str | Path) -> Path:
    """Return the path of a file that is there; FileNotFoundError if it is not."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing")
    return Path(path)


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; FileNotFoundError without one."""
    with existing(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: str | Path) -> Any:
    """Return what a JSON file holds; the errors begin with its path.

    Raises FileNotFoundError if it is missing, ValueError if it is not JSON in UTF-8.
    """
    try:
        return json.loads(existing(path).read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, or no JSON file: {error}") from error
