"""Claims about the messenger, each a test: decisions without mocks, machines on real servers."""
