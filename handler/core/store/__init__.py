"""The objects of the store: their keys, their content, and the checks when they are read."""
