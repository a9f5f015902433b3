"""What must start fast: the standard library and obstore only."""
