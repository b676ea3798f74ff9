"""Who a server's URL says we are: for the check that it is no secret everybody knows, and for
whatever is shown to people, without it."""

import re
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

NATS_SCHEMES = ("nats", "tls")
_SECRET_PARAMETER = re.compile(r"(\w*password)=[^&]*", re.IGNORECASE)


def without_password(text: str) -> str:
    """A URL, or several with commas, as it may be shown."""
    return ",".join(_one_without_password(part) for part in text.split(","))


def _one_without_password(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    rest, question, query = rest.partition("?")
    credentials, at, address = rest.rpartition("@")
    if not separator:
        return text
    user, colon, _ = credentials.partition(":")
    if scheme in NATS_SCHEMES and at and not colon:
        user = "********"  # a token
    shown = f"{scheme}://{user}{colon and ':********'}{at}{address}"
    return shown + question + _SECRET_PARAMETER.sub(r"\1=********", query)


def credentials(url: str) -> tuple[str | None, str | None]:
    parts = urlsplit(url)
    if parts.scheme in NATS_SCHEMES:
        return _nats_credentials(parts)
    query = dict(parse_qsl(parts.query))
    password = unquote(parts.password) if parts.password else query.get("password")
    return parts.username or query.get("user"), password


def _nats_credentials(parts: SplitResult) -> tuple[str | None, str | None]:
    """What stands there alone is a token."""
    if parts.password is None:
        return None, parts.username
    return parts.username, parts.password
