-- What troubleshoot reads from a database before it plans a repair.
-- To existing data: nothing; each statement only reads. The statements of a repair are made from the DDL and shown first.

-- name: columns
-- The columns of a table, hidden and generated ones too.
SELECT name FROM pragma_table_xinfo(:table) ORDER BY cid;

-- name: references
-- The references of a table: each column with the table and column that it refers to.
SELECT "from" AS "column", "table" AS parent, "to" AS parent_column FROM pragma_foreign_key_list(:table) ORDER BY id, seq;

-- name: unique
-- The unique indexes and primary keys with their tables, their columns, and SQL that is true for a key without NULL.
-- Leaves out partial indexes, indexes on expressions, and tables without a rowid.
SELECT
    indexes.name AS "index", tables.name AS "table", group_concat(printf('"%w"', columns.name), ', ') AS columns,
    group_concat(printf('"%w" IS NOT NULL', columns.name), ' AND ') AS given
FROM sqlite_master AS tables, pragma_index_list(tables.name) AS indexes, pragma_index_info(indexes.name) AS columns
WHERE tables.type = 'table' AND tables.sql NOT LIKE '%without%rowid%' AND indexes."unique" AND NOT indexes.partial
GROUP BY tables.name, indexes.name
HAVING count(columns.name) = count(*)
UNION SELECT
    '', tables.name, group_concat(printf('"%w"', columns.name), ', '),
    group_concat(printf('"%w" IS NOT NULL', columns.name), ' AND ')
FROM sqlite_master AS tables, pragma_table_info(tables.name) AS columns
WHERE tables.type = 'table' AND tables.sql NOT LIKE '%without%rowid%' AND columns.pk
GROUP BY tables.name;

-- name: has_statistics
-- Whether ANALYZE was ever run.
SELECT count(*) FROM sqlite_master WHERE name = 'sqlite_stat1';

-- name: statistics
-- The number of rows of each table when it was analysed; a partial index covers only some of them.
SELECT tbl AS "table", max(CAST(stat AS INTEGER)) AS rows FROM sqlite_stat1 GROUP BY tbl;
