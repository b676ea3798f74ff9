"""The machines of the messenger: log, executor, relay, projectors, replay. They do I/O and
know no feature."""
