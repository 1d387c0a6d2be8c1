"""The code of the course: one module per notebook, and some helpers written by hand."""
