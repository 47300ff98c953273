"""What benchmark and monitor measure, and the limits that they are held against."""
