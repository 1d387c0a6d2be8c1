"""What helps the lessons and is not one; written by hand."""

from pathlib import Path

COURSE = Path(__file__).resolve().parents[2]  # the top folder
