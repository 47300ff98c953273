"""Evidence: the record of each run, the archive that keeps it, the runner that leaves no doubt about its verdict."""
