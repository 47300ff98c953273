"""Backups, and the change engine: whatever replaces what a database holds."""
