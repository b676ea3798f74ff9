"""The doors of the messenger: HTTP and the command line."""
