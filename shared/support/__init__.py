"""What helps the lessons and is not one; written by hand.

Here: where the course lies, how its files are read and written, and guards of one line.
Nothing in it needs PyTorch, so that programs without it start at once.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from numbers import Integral
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
        several = "; JSON lines? make them one list" * ("Extra data" in str(error))
        message = f"{path} is damaged, or no JSON file: {error}{several}"
        raise ValueError(message) from error


def require_whole(least: int = 1, **numbers: Any) -> None:
    """Raise ValueError unless these are whole numbers, and at least `least`.

    >>> require_whole(batch_size=2.5)
    Traceback (most recent call last):
    ValueError: batch_size must be a whole number of at least 1, got 2.5
    """
    for name, value in numbers.items():
        if not isinstance(value, Integral) or value < least:
            rule = f"{name} must be a whole number of at least {least}"
            raise ValueError(f"{rule}, got {value!r}")


def refuse_text(*known: str, **collections: Any) -> None:
    """Raise TypeError for a text, other than the known ones, instead of a collection.

    Python would go through it letter by letter, without a word.
    """
    for name, value in collections.items():
        if isinstance(value, str | bytes) and value not in known:
            raise TypeError(f"{name} must be a collection, not the text {value!r:.60}")


def misfits(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return the names of tensors that are missing, unknown or of another shape."""
    shapes = [{(n, tuple(t.shape)) for n, t in d.items()} for d in (expected, found)]
    return sorted({name for name, _ in shapes[0] ^ shapes[1]})
