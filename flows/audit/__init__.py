"""The flow *audit*: the files of an installed Python distribution; the ID is its name."""
