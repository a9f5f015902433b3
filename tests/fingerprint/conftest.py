"""Case folders hold code to look at, not tests to run."""

collect_ignore = ["cases"]
