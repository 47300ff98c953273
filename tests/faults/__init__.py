"""The sweeps: what is struck, killed, damaged or looked at, by what, and the judges of what came of it."""
