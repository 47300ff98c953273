"""Take, list and remove backups; plan and make each change of a database."""
