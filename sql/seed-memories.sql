-- The three application memories that a new database starts with. Run once, after the DDL files.
-- To existing data: nothing. If version 1 of a memory exists, its statement fails (UNIQUE) and changes nothing.
-- Version 1 keeps its content for ever; the later versions are the users' own.

-- How an agent works by default.
INSERT INTO memory_entries (namespace, key, value, memory_type, created_by, updated_by)
VALUES (
    'app:abathur:agent_instructions',
    'default_workflow',
    '{"steps":["Read and analyze task requirements","Retrieve relevant context from memory","Execute task with best practices","Update session state and memory","Log comprehensive audit trail"],"error_handling":"Always provide detailed error messages and rollback on failure","logging":"Comprehensive audit logging enabled"}',
    'procedural',
    'system',
    'system'
);

-- How long memories live.
INSERT INTO memory_entries (namespace, key, value, memory_type, created_by, updated_by)
VALUES (
    'app:abathur:config',
    'memory_lifecycle_policies',
    '{"episodic_ttl_days":90,"semantic_permanent":true,"procedural_versioned":true,"consolidation_frequency":"weekly","archival_after_days":365}',
    'procedural',
    'system',
    'system'
);

-- The defaults for a user who has stated no preferences.
INSERT INTO memory_entries (namespace, key, value, memory_type, created_by, updated_by)
VALUES (
    'app:abathur:defaults',
    'user_preference_template',
    '{"communication_style":"balanced","technical_level":"intermediate","response_length":"moderate","code_comments":true}',
    'semantic',
    'system',
    'system'
);
