"""The async helper through which an application uses a database, and the inspection of database files."""
