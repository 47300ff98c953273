-- What the package itself reads from a database: its schema, its sizes, its seeds.
-- To existing data: nothing; each statement only reads.

-- name: schema
-- Every object of the schema but SQLite's own, in the order in which it was made. A virtual table has no pages.
SELECT CASE WHEN type = 'table' AND rootpage = 0 THEN 'virtual table' ELSE lower(type) END AS type, name, tbl_name, sql
FROM sqlite_master WHERE name NOT LIKE 'sqlite^_%' ESCAPE '^' ORDER BY rowid;

-- name: schema_size
-- The bytes of the SQL of all objects.
SELECT ifnull(sum(length(CAST(sql AS BLOB))), 0) FROM sqlite_master;

-- name: computed
-- The tables with indexed expressions, partial indexes or generated columns, and the most values that an expression can
-- hold at once: the number of commas in the SQL, plus one.
SELECT found.tbl_name AS "table", max(length(found.sql) - length(replace(found.sql, ',', '')) + 1) AS number
FROM sqlite_master AS found
WHERE found.sql LIKE '%,%,%,%' AND (
    found.type = 'index' AND (
        found.sql LIKE '%where%' OR EXISTS (SELECT 1 FROM pragma_index_xinfo(found.name) WHERE cid = -2)
    )
    OR EXISTS (SELECT 1 FROM pragma_table_xinfo(found.tbl_name) WHERE hidden > 1)
)
GROUP BY found.tbl_name;

-- name: tables
-- Every table whose rows are content, with SQLite's sequences and without its statistics. The rows of a virtual table
-- are in ordinary tables beside it.
SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0 AND name NOT LIKE 'sqlite^_stat%' ESCAPE '^' ORDER BY name;

-- name: triggers_and_views
-- Triggers and views, which do not belong in a database of this application. SQLite accepts the type in any case.
SELECT lower(type) AS type, name, printf('DROP %s "%w";', upper(type), name) AS drops
FROM sqlite_master WHERE type NOT IN ('table', 'index') ORDER BY name;

-- name: indexes
-- The indexes made by CREATE INDEX, with their tables; the index of a constraint has no SQL.
SELECT name, tbl_name AS "table" FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name;

-- name: sizes
-- The size of each table and index in bytes; needs a SQLite with dbstat.
SELECT name, sum(pgsize) AS bytes FROM dbstat GROUP BY name;

-- name: pragmas
-- The settings of a file and of a connection to it, in one statement; the other PRAGMAs are not available as functions.
SELECT
    (SELECT * FROM pragma_busy_timeout) AS busy_timeout,
    (SELECT * FROM pragma_foreign_keys) AS foreign_keys,
    (SELECT * FROM pragma_synchronous) AS synchronous,
    (SELECT * FROM pragma_cache_size) AS cache_size,
    (SELECT * FROM pragma_temp_store) AS temp_store,
    (SELECT * FROM pragma_query_only) AS query_only,
    (SELECT * FROM pragma_trusted_schema) AS trusted_schema,
    (SELECT * FROM pragma_application_id) AS application_id,
    (SELECT * FROM pragma_user_version) AS user_version,
    (SELECT * FROM pragma_encoding) AS encoding;

-- name: references
-- At most `:limit` rows of the `:tables` whose parent row is missing: the names of the referring columns and of their
-- targets, and, quoted for SQL, of the referring columns and of the primary key.
SELECT
    f."table" AS "table", f.rowid AS number, f.parent,
    (SELECT group_concat("from", ', ') FROM pragma_foreign_key_list(f."table") WHERE id = f.fkid) AS columns,
    (SELECT group_concat(ifnull("to", 'key'), ', ') FROM pragma_foreign_key_list(f."table") WHERE id = f.fkid) AS targets,
    (SELECT group_concat(printf('"%w"', "from")) FROM pragma_foreign_key_list(f."table") WHERE id = f.fkid) AS refers,
    (SELECT group_concat(printf('"%w"', name)) FROM pragma_table_info(f."table") WHERE pk) AS keys,
    count(*) OVER () AS total
FROM (
    SELECT name FROM sqlite_master WHERE type = 'table' AND name IN (SELECT value FROM json_each(:tables))
) AS ours, pragma_foreign_key_check(ours.name) AS f
LIMIT :limit;

-- name: sequences
-- The id counters that are invalid, too low or too high, with the SQL that repairs each.
SELECT
    tables.name, sequence.seq, tables.largest, printf('DELETE FROM sqlite_sequence WHERE name = %Q', tables.name) AS clear,
    printf('INSERT INTO sqlite_sequence VALUES (%Q, %d)', tables.name, ifnull(tables.largest, 0)) AS repair
FROM (
    SELECT 'memory_entries' AS name, (SELECT max(id) FROM memory_entries) AS largest
    UNION ALL SELECT 'document_index', (SELECT max(id) FROM document_index)
    UNION ALL SELECT 'state', (SELECT max(id) FROM state)
    UNION ALL SELECT 'audit', (SELECT max(id) FROM audit)
    UNION ALL SELECT 'metrics', (SELECT max(id) FROM metrics)
) AS tables
LEFT JOIN sqlite_sequence AS sequence ON sequence.name = tables.name COLLATE NOCASE
WHERE (sequence.seq IS NOT NULL OR tables.largest IS NOT NULL) AND NOT (
    typeof(sequence.seq) = 'integer' AND sequence.seq BETWEEN ifnull(tables.largest, 0) AND 4611686018427387903
);

-- name: restore_seed
-- The statement that restores a seed. It updates the existing row, because audit rows refer to its id. A seed that a
-- user deleted stays deleted.
SELECT printf(
    'INSERT INTO memory_entries (namespace, key, value, memory_type, metadata, created_by, updated_by, version, is_deleted)'
    || ' VALUES (%Q, %Q, %Q, %Q, %Q, %Q, %Q, %d,'
    || ' (SELECT ifnull(min(is_deleted), 0) FROM memory_entries WHERE namespace = %Q AND key = %Q))'
    || ' ON CONFLICT (namespace, key, version) DO UPDATE SET value = excluded.value, memory_type = excluded.memory_type,'
    || ' metadata = excluded.metadata, created_by = excluded.created_by, updated_by = excluded.updated_by',
    :namespace, :key, :value, :memory_type, :metadata, :created_by, :updated_by, :version, :namespace, :key
) AS sql;

-- name: large_sessions
-- The session columns larger than `:bytes` bytes, the largest first.
WITH sizes AS MATERIALIZED (
    SELECT * FROM (
        -- With a LIMIT SQLite computes each length once, from one copy of the value.
        SELECT
            rowid AS number, id, length(CAST(events AS BLOB)) AS events, length(CAST(state AS BLOB)) AS state,
            length(CAST(metadata AS BLOB)) AS metadata
        FROM sessions LIMIT -1
    )
    WHERE max(events, state, metadata) > :bytes
)
SELECT number, id, 'events' AS "column", events AS bytes FROM sizes WHERE events > :bytes
UNION ALL SELECT number, id, 'state', state FROM sizes WHERE state > :bytes
UNION ALL SELECT number, id, 'metadata', metadata FROM sizes WHERE metadata > :bytes
ORDER BY bytes DESC;

-- name: unusual_names
-- Names that are not ASCII, at most `:limit` from each column: in UTF-8 they have more bytes than characters.
SELECT 'namespace' AS kind, '' AS scope, namespace AS name FROM (
    SELECT DISTINCT namespace FROM memory_entries WHERE length(CAST(namespace AS BLOB)) <> length(namespace) LIMIT :limit
)
UNION ALL SELECT 'key', namespace, "key" FROM (
    SELECT DISTINCT namespace, "key" FROM memory_entries WHERE length(CAST("key" AS BLOB)) <> length("key") LIMIT :limit
)
UNION ALL SELECT 'session', '', id FROM (
    SELECT id FROM sessions WHERE length(CAST(id AS BLOB)) <> length(id) LIMIT :limit
)
UNION ALL SELECT 'user', '', user_id FROM (
    SELECT DISTINCT user_id FROM sessions WHERE length(CAST(user_id AS BLOB)) <> length(user_id) LIMIT :limit
)
UNION ALL SELECT 'app', '', app_name FROM (
    SELECT DISTINCT app_name FROM sessions WHERE length(CAST(app_name AS BLOB)) <> length(app_name) LIMIT :limit
)
UNION ALL SELECT 'project', '', project_id FROM (
    SELECT DISTINCT project_id FROM sessions WHERE length(CAST(project_id AS BLOB)) <> length(project_id) LIMIT :limit
);

-- name: name_is_stored
-- Whether a column holds a name; a key is looked up within its namespace.
SELECT CASE :kind
    WHEN 'namespace' THEN EXISTS (SELECT 1 FROM memory_entries WHERE namespace = :name)
    WHEN 'key' THEN EXISTS (SELECT 1 FROM memory_entries WHERE namespace = :scope AND "key" = :name)
    WHEN 'session' THEN EXISTS (SELECT 1 FROM sessions WHERE id = :name)
    WHEN 'user' THEN EXISTS (SELECT 1 FROM sessions WHERE user_id = :name)
    WHEN 'app' THEN EXISTS (SELECT 1 FROM sessions WHERE app_name = :name)
    WHEN 'project' THEN EXISTS (SELECT 1 FROM sessions WHERE project_id = :name)
END;
