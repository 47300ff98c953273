"""Operate: back up, restore, roll back a database that exists."""
