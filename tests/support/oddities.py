"""Schemas that are not this package's alone, as other programs leave them: each with the statements that make it."""

_ABSENT = "'table', 'alien', 'alien', 0, 'CREATE VIRTUAL TABLE alien USING absent(x)'"
_COLUMNS = ", ".join(f"c{n}" for n in range(2000))
# Ordinary tables: validate only warns of them.
ODD_TABLES = {
    "without rowid": ("CREATE TABLE w (k PRIMARY KEY, v) WITHOUT ROWID", "INSERT INTO w VALUES (1, 2)"),
    "generated columns": (
        "CREATE TABLE g (a, b AS (a || 'x'), c AS (hex(zeroblob(100)) || a) STORED)",
        "INSERT INTO g VALUES (1)",
    ),
    # Half a minute for each row that is read whole.
    "columns that cost": (
        f"CREATE TABLE h (a, b AS (a || {'hex(' * 20}zeroblob(400){')' * 20}))",
        "INSERT INTO h VALUES (1), (2), (3), (4), (5), (6), (7), (8), (9), (10)",
    ),
    "2000 columns": (f"CREATE TABLE wide ({_COLUMNS})", "INSERT INTO wide (c0, c1999) VALUES (1, 'x')"),
}
_FILL = "INSERT INTO {} (rowid, a) SELECT id, value FROM memory_entries"
# What validate fails, and a backup takes.
ODD = {
    "fts5": ("CREATE VIRTUAL TABLE f USING fts5(a)", _FILL.format("f")),
    "fts5 of another table's content": (
        "CREATE VIRTUAL TABLE f USING fts5(value, content='memory_entries', content_rowid='id')",
        "INSERT INTO f (f) VALUES ('rebuild')",
    ),
    "fts5 without content": ("CREATE VIRTUAL TABLE f USING fts5(a, content='')", _FILL.format("f")),
    "fts4": ("CREATE VIRTUAL TABLE f USING fts4(a)", "INSERT INTO f (a) SELECT value FROM memory_entries"),
    "rtree": ("CREATE VIRTUAL TABLE r USING rtree(id, low, high)", "INSERT INTO r VALUES (1, 2, 3)"),
    "a module that is absent": ("PRAGMA writable_schema = ON", f"INSERT INTO sqlite_master VALUES ({_ABSENT})"),
    "a view": ("CREATE VIEW v AS SELECT 1",),
    "a view without end": (
        "CREATE VIEW v AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    ),
    "a view of what is gone": ("CREATE VIEW v AS SELECT x FROM nowhere",),
    "a view of itself": ("CREATE VIEW v AS SELECT * FROM w", "CREATE VIEW w AS SELECT * FROM v"),
    "a trigger": ("CREATE TRIGGER t AFTER DELETE ON agents BEGIN DELETE FROM memory_entries; END",),
}
