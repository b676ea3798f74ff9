"""Logs: one JSON object a line on stderr, an event name with fields, never a message text."""

import sys
from typing import Any

import msgspec

from infra import clock

LEVELS = ("debug", "info", "warning", "error")


class Logger:
    """`logger.info("relay_leads", sequence=3)`; `bound` fields come on every line."""

    def __init__(self, level: str = "info", **bound: Any) -> None:
        self._lowest = LEVELS.index(level)
        self._level = level
        self._bound = bound

    def bind(self, **fields: Any) -> "Logger":
        return Logger(self._level, **self._bound, **fields)

    def debug(self, name: str, **fields: Any) -> None:
        self._write("debug", name, fields)

    def info(self, name: str, **fields: Any) -> None:
        self._write("info", name, fields)

    def warning(self, name: str, **fields: Any) -> None:
        self._write("warning", name, fields)

    def error(self, name: str, **fields: Any) -> None:
        self._write("error", name, fields)

    def _write(self, level: str, name: str, fields: dict[str, Any]) -> None:
        if LEVELS.index(level) < self._lowest:
            return
        line = {"at": clock.now(), "level": level, "event": name, **self._bound, **fields}
        sys.stderr.write(msgspec.json.encode(line, enc_hook=str).decode() + "\n")
        sys.stderr.flush()
