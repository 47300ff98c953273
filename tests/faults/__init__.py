"""The fault sweeps of initialize_database: a victim that may be killed, strace, the judge, the sweeps."""
