"""What every event shares: the base struct, sealed fields, and the recorded envelope.

An event is a frozen struct with a type name and a schema version. It stores what was
decided. Fields marked `Sealed` hold readable text here and are encrypted with the named
user's key before they leave the process; `None` in one that is required means that the
key was destroyed.
"""

from datetime import datetime
from typing import Annotated, ClassVar, Literal, NamedTuple

import msgspec

from domain.ids import StreamId

KeyPurpose = Literal["profile", "content"]


class Sealed(NamedTuple):
    """Marks a field: sealed with the `purpose` key of the user named in field `owner`."""

    owner: str
    purpose: KeyPurpose


# The two kinds of sealed text there are (contract.md, section 6).
ProfileText = Annotated[str | None, Sealed("user_id", "profile")]
MessageText = Annotated[str | None, Sealed("sender_id", "content")]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A fact. Subclasses set `type` (snake_case, unique) and `version`, never edited again.

    `founds_keys`: this event begins a user, so the user's keys are made before it is sealed.
    """

    type: ClassVar[str]
    version: ClassVar[int] = 1
    founds_keys: ClassVar[bool] = False

    @property
    def stream(self) -> StreamId:
        raise NotImplementedError


class Place(NamedTuple):
    """Where and when an event entered the log: its position and UTC time."""

    position: int
    recorded_at: datetime


class Recorded(NamedTuple):
    """An event as read from the log. `event` is None where the reader asked to skip its type."""

    position: int
    recorded_at: datetime
    event: Event | None
