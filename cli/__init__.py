"""A person at a terminal: one file per command group."""
