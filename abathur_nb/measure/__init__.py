"""Measurements of benchmark and monitor: synthetic rows, timed reads, samples of a live database; alert rules."""
