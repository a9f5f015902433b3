"""The flow *audit*: what an installed Python distribution consists of, read from its files; the ID is its name."""
