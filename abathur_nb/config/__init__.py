"""The input of a run: settings, parameters and their guard, and the notebooks as data."""
