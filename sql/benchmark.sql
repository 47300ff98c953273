-- Renames rows of the benchmark's copy that could collide with synthetic ones. Run it as one script, with foreign keys
-- off: references to the old names stay, but nothing reads them.
-- To existing data: renames each session id and memory namespace that begins with `synthetic`. Run on a copy only.

UPDATE sessions SET id = lower(hex(randomblob(8))) || id WHERE id GLOB 'synthetic*';

UPDATE memory_entries SET namespace = lower(hex(randomblob(8))) || namespace WHERE namespace GLOB 'synthetic*';
