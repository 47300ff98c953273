"""What validate and preflight judge: the place on disk, the live objects, the rows."""
