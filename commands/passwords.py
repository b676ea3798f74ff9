"""The rule for passwords: 8 to 72 bytes of UTF-8 (contract.md; bcrypt reads no more)."""

from commands.command import MAX_PASSWORD_BYTES, MIN_PASSWORD_BYTES
from domain.refusals import Invalid


def check_password(password: str, *, field: str) -> None:
    if not MIN_PASSWORD_BYTES <= len(password.encode()) <= MAX_PASSWORD_BYTES:
        raise Invalid(
            f"a password has {MIN_PASSWORD_BYTES} to {MAX_PASSWORD_BYTES} bytes", field=field
        )
