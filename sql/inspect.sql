-- What the package itself asks of a database: its schema, its sizes, its seeds.
-- To existing data: nothing; each statement only reads.

-- name: schema
-- Every object of the schema but SQLite's own, in the order in which it was made.
SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite^_%' ESCAPE '^' ORDER BY rowid;

-- name: triggers_and_views
-- What does not belong into a database of this application.
SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'view') ORDER BY name;

-- name: indexes
-- The named indexes with their tables; those that a constraint brings have no SQL.
SELECT name, tbl_name AS "table" FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name;

-- name: sizes
-- The bytes that each table and index takes up; needs a SQLite with dbstat.
SELECT name, sum(pgsize) AS bytes FROM dbstat GROUP BY name;

-- name: seed_versions
-- Every version of a seed memory, oldest first.
-- parameters: {"namespace": "app:abathur:config", "key": "memory_lifecycle_policies"}
SELECT version, value, memory_type, created_by FROM memory_entries
WHERE namespace = :namespace AND key = :key
ORDER BY version;

-- name: connection_pragmas
-- What a connection has set for itself, in one statement; wal_autocheckpoint and mmap_size can't be asked for this way.
SELECT
    (SELECT * FROM pragma_busy_timeout) AS busy_timeout,
    (SELECT * FROM pragma_foreign_keys) AS foreign_keys,
    (SELECT * FROM pragma_synchronous) AS synchronous,
    (SELECT * FROM pragma_cache_size) AS cache_size,
    (SELECT * FROM pragma_temp_store) AS temp_store,
    (SELECT * FROM pragma_query_only) AS query_only;
