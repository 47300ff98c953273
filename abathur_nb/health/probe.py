"""Be the second process of preflight's probe: print what it could do with the database of a URI.

A process of its own, because two connections in one process share SQLite's locks without asking the file system.
"""

import json
import sqlite3
import sys


def main() -> None:
    """Open the database, ask for the write lock, print both answers as JSON."""
    found: dict[str, object] = {}
    try:
        conn = sqlite3.connect(f"{sys.argv[3]}?mode=rw", uri=True, isolation_level=None, timeout=0)
        found["journal_mode"] = conn.execute("PRAGMA journal_mode").fetchone()[0]
        found["user_version"] = conn.execute("PRAGMA user_version").fetchone()[0]
        conn.execute("BEGIN IMMEDIATE")
        found["lock"] = "taken"
    except sqlite3.OperationalError as error:
        found["lock" if "user_version" in found else "error"] = error.sqlite_errorname
    sys.stdout.write(json.dumps(found))
