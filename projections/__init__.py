"""The read models: one file each, all of them pure.

`PROJECTIONS` is the explicit table; a projection in it is run, rebuilt, verified and shown in
status with nothing else to write but the migration of its tables.
"""

from projections.chats import CHATS
from projections.delivery import DELIVERY
from projections.messages import MESSAGES
from projections.projection import Projection
from projections.unread import UNREAD
from projections.users import USERS

PROJECTIONS: tuple[Projection, ...] = (USERS, CHATS, MESSAGES, DELIVERY, UNREAD)
BY_NAME = {projection.name: projection for projection in PROJECTIONS}
NAMES = tuple(BY_NAME)
