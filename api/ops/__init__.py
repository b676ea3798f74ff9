"""The operators' page, at /ops: who may see it, what it shows, and its files."""
