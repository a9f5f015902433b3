"""The objects of the store: where they are, what they hold, and how they are checked when they are read."""
