"""The database's shape, step by step: Alembic revisions and the SQL functions they install."""
