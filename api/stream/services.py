"""What every connection of a process works with."""

from typing import NamedTuple

from api.parts import Parts
from api.stream.catch_up import CatchUp
from api.stream.gateway import Gateway
from api.stream.places import Places
from api.stream.presence import Presence
from api.stream.readings import Readings
from api.stream.receipts import Pending
from api.stream.sockets import Sockets
from api.stream.typing import TypingNews


class Services(NamedTuple):
    parts: Parts
    readings: Readings
    gateway: Gateway
    catch_up: CatchUp
    pending: Pending
    presence: Presence
    typing: TypingNews
    sockets: Sockets
    places: Places
