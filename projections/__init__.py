"""The read models: one file each, all of them pure.

`PROJECTIONS` is the explicit table; a projection in it is run, rebuilt, verified and shown in
status with nothing else to write but the migration of its tables.
"""

from projections import chats, contacts, delivery, messages, reactions, search, unread, users
from projections.projection import Projection

PROJECTIONS: tuple[Projection, ...] = (
    users.PROJECTION,
    contacts.PROJECTION,
    chats.PROJECTION,
    messages.PROJECTION,
    reactions.PROJECTION,
    delivery.PROJECTION,
    unread.PROJECTION,
    search.PROJECTION,
)
BY_NAME = {projection.name: projection for projection in PROJECTIONS}
NAMES = tuple(BY_NAME)
