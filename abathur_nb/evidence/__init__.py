"""Records of runs and the archive that keeps them: write, read, verify and copy."""
