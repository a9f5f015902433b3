"""The ``pfl`` command: one file per command group."""
