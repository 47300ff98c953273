-- Makes room for synthetic rows in the copy that the benchmark fills. Run as one script, without foreign keys: live
-- rows may then refer to a renamed row; nothing reads them.
-- To existing data: renames each live row whose key begins like a synthetic one's. Run it on a copy only.

UPDATE sessions SET id = lower(hex(randomblob(8))) || id WHERE id GLOB 'synthetic*';

UPDATE memory_entries SET namespace = lower(hex(randomblob(8))) || namespace WHERE namespace GLOB 'synthetic*';
