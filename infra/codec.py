"""Events to JSON and back, sealing and opening the fields that are marked `Sealed`.

A sealed field is the base64 of nonce, AES-GCM ciphertext and tag, bound to its event type,
field and stream, so that it can't be moved to another event. Opened without its key it is
None. Decoding knows every type and schema version ever written (tests/golden/events).
"""

import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, get_type_hints

import msgspec
from cryptography.exceptions import InvalidTag

from domain import EVENTS
from domain.event import Event, Sealed
from domain.upcasters import UPCASTERS
from infra.errors import LogError
from infra.keyring import NONCE_BYTES, KeyId, Keyring


class KeyMissing(LogError):
    """There is no key to seal an event with: it was destroyed, or never made."""


class _Shape(NamedTuple):
    """What the codec knows of an event type."""

    event: type[Event]
    decoder: msgspec.json.Decoder[Event]
    fields: tuple[str, ...]
    sealed: tuple[tuple[str, Sealed], ...]


def _shape(event: type[Event]) -> _Shape:
    hints = get_type_hints(event, include_extras=True)
    sealed = tuple(
        (field, mark)
        for field in event.__struct_fields__
        for mark in getattr(hints[field], "__metadata__", ())
        if isinstance(mark, Sealed)
    )
    return _Shape(event, msgspec.json.Decoder(event), event.__struct_fields__, sealed)


_BY_TYPE = {event: _shape(event) for event in EVENTS}
_BY_NAME = {(event.type, event.version): shape for event, shape in _BY_TYPE.items()}
_encode = msgspec.json.encode

TYPES = frozenset(shape.event.type for shape in _BY_TYPE.values())

SEALED_TYPES = tuple(shape.event.type for shape in _BY_TYPE.values() if shape.sealed)


def key_ids(events: Iterable[Event]) -> list[KeyId]:
    """The keys that sealing or opening these events takes."""
    return [
        KeyId(getattr(event, mark.owner), mark.purpose)
        for event in events
        for _, mark in _BY_TYPE[type(event)].sealed
    ]


def sealed_fields(event: Event) -> list[str]:
    return [field for field, _ in _BY_TYPE[type(event)].sealed]


def encode(event: Event, keyring: Keyring) -> bytes:
    """The event's `data`. Raises KeyMissing."""
    shape = _BY_TYPE[type(event)]
    if not shape.sealed:
        return _encode(event)
    values = {field: getattr(event, field) for field in shape.fields}
    for field, mark in shape.sealed:
        if values[field] is not None:
            values[field] = _seal(event, field, mark, keyring)
    return _encode(values)


def decode(type_name: str, version: int, data: str | bytes) -> Event:
    """The event with its sealed fields still sealed. Raises LogError."""
    shape = _BY_NAME.get((type_name, version))
    try:
        return shape.decoder.decode(data) if shape else _upcast(type_name, version, data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LogError(f"a {type_name} event can't be decoded: {error}") from error


def readable(type_name: str, version: int, data: str | bytes) -> Event | None:
    """The same, or None for what this code can't read: newer code wrote it, or it is broken."""
    try:
        return decode(type_name, version, data)
    except LogError:
        return None


def _upcast(type_name: str, version: int, data: str | bytes) -> Event:
    """An event of an older version, as today's."""
    if (type_name, version) not in UPCASTERS:
        raise LogError(f"unknown event type {type_name} of schema version {version}")
    fields: dict[str, Any] = msgspec.json.decode(data, type=dict)
    while (type_name, version) in UPCASTERS:
        fields = UPCASTERS[type_name, version](fields)
        version += 1
    return msgspec.convert(fields, _BY_NAME[type_name, version].event)


def open_sealed(event: Event, keyring: Keyring) -> None:
    """Opens the event's sealed fields in place, with keys that were loaded before.

    Raises cryptography's InvalidTag if a field was tampered with.
    """
    for field, mark in _BY_TYPE[type(event)].sealed:
        sealed = getattr(event, field)
        if sealed is not None:
            cipher = keyring.cipher(KeyId(getattr(event, mark.owner), mark.purpose))
            text = None if cipher is None else _open(event, field, sealed, cipher)
            msgspec.structs.force_setattr(event, field, text)


def opened_data(event: Event, data: bytes, keyring: Keyring) -> bytes:
    """The `data` that the event was decoded from, with its sealed fields readable, or null where
    their key is gone. Raises InvalidTag."""

    def opened(field: str, mark: Sealed) -> str | None:
        cipher = keyring.cipher(KeyId(getattr(event, mark.owner), mark.purpose))
        return None if cipher is None else _open(event, field, getattr(event, field), cipher)

    return _changed(event, data, opened)


def sealed_data(event: Event, data: bytes, keyring: Keyring) -> bytes:
    """The other way round: the event was decoded from readable `data`. Raises KeyMissing."""
    return _changed(event, data, lambda field, mark: _seal(event, field, mark, keyring))


def _changed(event: Event, data: bytes, change: Callable[[str, Sealed], str | None]) -> bytes:
    """All but the sealed fields stays as it was written, whatever schema version that is of."""
    sealed = _BY_TYPE[type(event)].sealed
    if not sealed:
        return data
    fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    for field, mark in sealed:
        if field in fields and getattr(event, field) is not None:
            fields[field] = msgspec.Raw(_encode(change(field, mark)))
    return _encode(fields)


def _seal(event: Event, field: str, mark: Sealed, keyring: Keyring) -> str:
    cipher = keyring.cipher(KeyId(getattr(event, mark.owner), mark.purpose))
    if cipher is None:
        raise KeyMissing(f"there is no {mark.purpose} key to seal a {event.type} event with")
    nonce = os.urandom(NONCE_BYTES)
    text: str = getattr(event, field)
    return b64encode(nonce + cipher.encrypt(nonce, text.encode(), _binding(event, field))).decode()


def _open(event: Event, field: str, sealed: str, cipher: Any) -> str:
    try:
        raw = b64decode(sealed, validate=True)
        opened: bytes = cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], _binding(event, field))
        return opened.decode()
    except ValueError as error:  # it is not even what sealing makes
        raise InvalidTag from error


def _binding(event: Event, field: str) -> bytes:
    return f"{event.type}.{field} {event.stream}".encode()
