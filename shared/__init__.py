"""The code of the course: one module per notebook, and a few helpers written by hand."""
