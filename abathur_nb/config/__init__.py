"""What a run is given: settings, parameters and their guard, the notebooks as data."""
