"""Refusals: why a command is not carried out. Raised by `decide`, shown as problems.

    Refusal
    ├── Invalid            400  the command can't be right whatever the state
    ├── WrongPassword      403  a signed-in user's command names a wrong password
    ├── Forbidden          403  the caller knows the thing but may not do this to it
    │   ├── NotContacts         this takes an accepted contact
    │   └── Blocked             one of the two has blocked the other
    ├── NotFound           404  there is none, or the caller may not know of it
    └── Conflict           409  the state speaks against it
        ├── UsernameTaken
        └── SlugTaken

The docstring of a class is its title for people; `code` is stable (contract.md, section 1).
"""

from typing import ClassVar


class Refusal(Exception):
    """Refused"""

    code: ClassVar[str]
    status: ClassVar[int]

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Invalid(Refusal):
    """The command is not valid"""

    code = "invalid"
    status = 400

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.field = field


class WrongPassword(Refusal):
    """The password is wrong"""

    code = "wrong-credentials"
    status = 403


class Forbidden(Refusal):
    """Not allowed"""

    code = "forbidden"
    status = 403


class NotContacts(Forbidden):
    """Not contacts"""

    code = "not-contacts"


class Blocked(Forbidden):
    """Blocked"""

    code = "blocked"


class NotFound(Refusal):
    """Not found"""

    code = "not-found"
    status = 404


class Conflict(Refusal):
    """The state speaks against it"""

    code = "conflict"
    status = 409


class UsernameTaken(Conflict):
    """The username is taken"""

    code = "username-taken"


class SlugTaken(Conflict):
    """The slug is taken"""

    code = "slug-taken"
