"""Prefect: imported on a miss, and nowhere else."""
