"""JSON bodies to structs, strictly: every way to be wrong is `malformed` or `invalid`.

`malformed` is what is no JSON object in UTF-8; `invalid` is an object of the wrong shape, and
names the field. NUL is refused in all texts, whichever command they belong to.
"""

import re
from typing import Any, TypeVar

import msgspec

from api.problems import Malformed
from domain.refusals import Invalid

T = TypeVar("T")

NUL_IN_JSON = b"\\u0000"

_PLACE = re.compile(r"(?s)(.*?)(?: - at `(.*)`)?")
_NAMED_FIELD = re.compile(r"(?s)Object (?:missing required|contains unknown) field `(.*)`")


def decode(
    decoder: msgspec.json.Decoder[T], body: bytes | msgspec.Raw, *, has_parts: bool = False
) -> T:
    """Raises Malformed or Invalid. A body with parts leaves it to them to refuse NUL."""
    try:
        decoded = decoder.decode(body)
    except msgspec.ValidationError as error:
        _refuse_malformed(body)
        raise _invalid(str(error)) from None
    except (ValueError, RecursionError):
        raise Malformed("the body is not JSON in UTF-8") from None
    if not has_parts and NUL_IN_JSON in bytes(body):
        _refuse_nul(msgspec.json.decode(body), "")
    return decoded


def _refuse_malformed(body: bytes | msgspec.Raw) -> None:
    """A wrong shape was found first, but the rest may not even be JSON."""
    try:
        value = msgspec.json.decode(body)
    except msgspec.ValidationError:
        return  # a number that nothing can hold: JSON all the same
    except (ValueError, RecursionError):
        raise Malformed("the body is not JSON in UTF-8, or nested too deeply") from None
    if not isinstance(value, dict):
        raise Malformed("the body is not a JSON object")


def _invalid(message: str) -> Invalid:
    """msgspec says `what - at `$.path``; a missing or unknown field it names in `what`."""
    match = _PLACE.fullmatch(message)
    what, place = match.groups() if match else (message, None)
    path = (place or "$").removeprefix("$").removeprefix(".")
    named = _NAMED_FIELD.fullmatch(what)
    if named:
        path = f"{path}.{named[1]}" if path else named[1]
    return Invalid(what, field=path or "$")


def _refuse_nul(value: Any, path: str) -> None:
    match value:
        case str() if "\0" in value:
            raise Invalid("a text may not hold the NUL character", field=path)
        case dict():
            for key, inner in value.items():
                _refuse_nul(inner, f"{path}.{key}" if path else key)
        case list():
            for n, inner in enumerate(value):
                _refuse_nul(inner, f"{path}[{n}]")
