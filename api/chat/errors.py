"""What ends a chat: one line for whoever sits before it.

ChatError (infra.errors.MessengerError)
├── Unreachable     nobody answers at the address, or nobody who is a messenger
├── SessionEnded    the session is no more: somebody has to log in again
└── Refused         the server says no, and why
"""

from infra.errors import MessengerError


class ChatError(MessengerError):
    """The chat can't go on."""


class Unreachable(ChatError):
    """The server does not answer."""


class SessionEnded(ChatError):
    """The session has ended."""


class Refused(ChatError):
    """The server's own words."""

    def __init__(self, detail: str, *, status: int) -> None:
        super().__init__(detail)
        self.status = status
