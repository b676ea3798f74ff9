"""`messenger import irc`: logs of a channel, one file a day, through the command side.

A day is a group chat owned by a bridge account, a nick is a user; what each kind of line
becomes is said in `plan`, how a nick becomes a username in `usernames`.
"""

from api.irc.accounts import LockedPasswords
from api.irc.importer import run
from api.irc.report import Report

__all__ = ["LockedPasswords", "Report", "run"]
