-- What troubleshoot asks of a database before it plans a repair.
-- To existing data: nothing; each statement only reads. What a repair runs is made from the DDL and shown first.

-- name: columns
-- The columns of a table and their declared types, hidden and generated ones too.
SELECT name, type FROM pragma_table_xinfo(:table) ORDER BY cid;

-- name: references
-- The references of a table: each column with the table and column that it refers to.
SELECT "from" AS "column", "table" AS parent, "to" AS parent_column FROM pragma_foreign_key_list(:table) ORDER BY id, seq;

-- name: unique_columns
-- The columns that a constraint of a table keeps unique together, one row a constraint.
SELECT group_concat(columns.name) AS columns
FROM pragma_index_list(:table) AS indexes, pragma_index_info(indexes.name) AS columns
WHERE indexes.origin IN ('u', 'pk')
GROUP BY indexes.name;

-- name: violations
-- How many references of each table have no row.
SELECT "table", count(*) AS number FROM pragma_foreign_key_check GROUP BY "table";

-- name: has_statistics
-- Whether ANALYZE was ever run.
SELECT count(*) FROM sqlite_master WHERE name = 'sqlite_stat1';

-- name: statistics
-- How many rows each table had when it was analysed; a partial index tells of some of them only.
SELECT tbl AS "table", max(CAST(stat AS INTEGER)) AS rows FROM sqlite_stat1 GROUP BY tbl;

-- name: last_id
-- The last id that a table gave out.
SELECT seq FROM sqlite_sequence WHERE name = :table COLLATE NOCASE AND typeof(seq) = 'integer';
