import ext  # noqa: F401
