"""One module for each notebook, named as the notebook."""
