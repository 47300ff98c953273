"""The record of each run, the archive that keeps it; reading, verifying, comparing them."""
