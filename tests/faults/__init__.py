"""Faults: processes killed at every point, and counted afterwards."""
