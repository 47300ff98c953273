"""What benchmark and monitor measure: synthetic rows, timed reads, samples of a live database, and alert rules."""
