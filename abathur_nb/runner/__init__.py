"""The runner of notebooks, and the engine of papermill."""
