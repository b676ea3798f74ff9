"""Runs revisions on the connection that `infra.migrate` hands over."""

from alembic import context

from infra.migrate import CONFIGURE

context.configure(connection=context.config.attributes["connection"], **CONFIGURE)
with context.begin_transaction():
    context.run_migrations()
