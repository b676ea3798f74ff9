"""What goes wrong in the machines.

MessengerError
├── Unavailable     a server that we need does not answer, or too much waits already
├── LogError        the log is not what it must be: a gap, or it went back
└── Stopped         an operator has to act; the process ends with this one line
"""


class MessengerError(Exception):
    """Something outside the rules of the domain went wrong."""


class Unavailable(MessengerError):
    """The command or query can't be served now; trying again later is right."""


class LogError(MessengerError):
    """The log has a gap or went back."""


class Stopped(MessengerError):
    """An operator has to act."""
