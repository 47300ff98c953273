-- The planner's statistics: read from the live database, put into a copy in memory. Run by name.
-- To existing data: nothing. The two that write are for the copy alone.

-- name: statistics_tables
-- Which tables of statistics there are: none before the first ANALYZE, sqlite_stat4 only where SQLite is built with it.
SELECT name FROM sqlite_master WHERE name IN ('sqlite_stat1', 'sqlite_stat4');

-- name: sqlite_stat1
-- The rows and the selectivity of each index.
SELECT tbl, idx, stat FROM sqlite_stat1;

-- name: sqlite_stat4
-- The sampled keys of each index.
SELECT tbl, idx, neq, nlt, ndlt, sample FROM sqlite_stat4;

-- name: put_sqlite_stat1
-- Put the rows and the selectivity of an index into the copy.
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES (?, ?, ?);

-- name: put_sqlite_stat4
-- Put a sampled key of an index into the copy.
INSERT INTO sqlite_stat4 (tbl, idx, neq, nlt, ndlt, sample) VALUES (?, ?, ?, ?, ?, ?);
