"""Lambda from outside: build, deploy, remote invoke, logs and the Prefect worker."""
