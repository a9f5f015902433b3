"""What needs Prefect: imported on a cache miss, and nowhere else."""
