"""What a setting's value may be: how its text is read, and the words for what is expected."""

from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit


class Kind(NamedTuple):
    """How text becomes a value: `parse` raises ValueError where it is not as `expects` says."""

    expects: str
    parse: Callable[[str], object]


def one_of(*words: str) -> Kind:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return Kind(f"one of {', '.join(words)}", parse)


def switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError
    return text == "on"


def whole(low: int, high: int) -> Kind:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return Kind(f"a whole number from {low} to {high}", parse)


def number(low: float, high: float) -> Kind:
    def parse(text: str) -> float:
        if not low <= float(text) <= high:
            raise ValueError
        return float(text)

    return Kind(f"a number from {low:g} to {high:g}", parse)


def url(*schemes: str, several: bool = False, needs_path: bool = False) -> Kind:
    def check(text: str) -> None:
        parts = urlsplit(text)
        _ = parts.port  # raises ValueError where it is not a port
        has_host = parts.hostname or "host=" in parts.query  # a socket's directory
        if parts.scheme not in schemes or not has_host or any(c.isspace() for c in text):
            raise ValueError
        if needs_path and len(parts.path) < 2:
            raise ValueError

    def parse(text: str) -> str:
        for url in text.split(",") if several else [text]:
            check(url)
        return text

    form = f"{schemes[0]}://HOST:PORT{'/NAME' if needs_path else ''}"
    return Kind(f"a URL like {form}{', or several with commas' if several else ''}", parse)


def text(expects: str, low: int, high: int) -> Kind:
    def parse(text: str) -> str:
        if not low <= len(text) <= high or not text.isprintable():
            raise ValueError
        return text

    return Kind(expects, parse)


def bucket(text: str) -> str:
    letters = text.replace("-", "").replace(".", "")
    if not 3 <= len(text) <= 63 or not letters.isascii() or not letters.isalnum():
        raise ValueError
    if text != text.lower() or not text[0].isalnum() or not text[-1].isalnum():
        raise ValueError
    return text


def networks(text: str) -> str:
    """As uvicorn takes them: it would hold what is none for a host's name."""
    return ",".join(str(ip_network(part.strip())) for part in text.split(","))


def metrics_address(text: str) -> str:
    kind, _, number = text.rpartition(":")
    if not kind or not number.isascii() or not number.isdigit() or int(number) > 65_535:
        raise ValueError
    return text


def metrics_peers(text: str) -> str:
    names = []
    for one in text.split(","):
        name, _, address = one.partition("=")
        if not name.isascii() or not name.replace("-", "").isalnum():
            raise ValueError
        metrics_address(address)
        names.append(name)
    if len(set(names)) < len(names):
        raise ValueError
    return text


def file(text: str) -> Path:
    path = Path(text)
    try:
        with path.open("rb"):
            return path.absolute()
    except OSError:
        raise ValueError from None


def origins(text: str) -> str:
    """In lower case, as browsers send them."""
    return ",".join(_origin(part.strip()) for part in text.split(","))


def _origin(text: str) -> str:
    parts = urlsplit(text.lower())
    _ = parts.port  # raises ValueError where it is not a port
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError
    if f"{parts.scheme}://{parts.netloc}" != text.lower() or parts.username is not None:
        raise ValueError
    return text.lower()
