"""The runner of notebooks, and the engine for papermill."""
