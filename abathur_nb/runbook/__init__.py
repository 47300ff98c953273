"""One module for each notebook, named after it."""
