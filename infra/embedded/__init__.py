"""PostgreSQL, NATS and an S3 server of our own, for one machine and for the tests.

Each module starts the real server, from the installed packages, as a child of this process:
`async with postgres.running(directory) as server: server.url`. The directory is a data directory
as `messenger up` has it: data in `postgres/`, `nats/` and `s3/`, output in `logs/`.
"""
