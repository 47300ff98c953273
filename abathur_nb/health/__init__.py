"""The checks of validate and preflight: the path on disk, the schema objects, the rows."""
