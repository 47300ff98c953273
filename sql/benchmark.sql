-- Renames live rows whose keys may collide with synthetic rows in the benchmark's copy. Run as one script, with foreign
-- keys off: other rows may still refer to the old names, but nothing reads them.
-- To existing data: renames each live row whose key begins with `synthetic`. Run it on a copy only.

UPDATE sessions SET id = lower(hex(randomblob(8))) || id WHERE id GLOB 'synthetic*';

UPDATE memory_entries SET namespace = lower(hex(randomblob(8))) || namespace WHERE namespace GLOB 'synthetic*';
