"""The async helper that an application uses, and the look at a database file that it stands on."""
