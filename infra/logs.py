"""Logs: one JSON object a line on stderr, an event name with fields, never a message text.

A line is bounded, and says ids, types, positions and reasons, nothing that people wrote or are
called: what is in a log is not erased with its user. What a database says about an error has values
of rows from its second line on, so only the first is logged, in tracebacks too. `request_id` is that
of the request, command or event that a line is about.
"""

import logging
import sys
import traceback
from typing import Any

import msgspec

from infra import clock
from infra.database import first_line

LEVELS = ("debug", "info", "warning", "error")
MAX_FIELD_CHARACTERS = 8_000
MAX_CAUSES = 8
CUT = "[cut] "


class Logger:
    """`logger.info("relay_leads", sequence=3)`; `bound` fields come on every line."""

    def __init__(self, level: str = "info", **bound: Any) -> None:
        self._lowest = LEVELS.index(level)
        self._level = level
        self._bound = bound
        # To be asked before what is costly to find out.
        self.is_debug = level == "debug"

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
        bounded = {key: _bounded(value) for key, value in fields.items()}
        line = {"at": clock.now(), "level": level, "event": name, **self._bound, **bounded}
        sys.stderr.write(msgspec.json.encode(line, enc_hook=str).decode() + "\n")
        sys.stderr.flush()


def traceback_of(error: BaseException) -> str:
    """As Python prints it, but of each error only the first line. The last is what was raised."""
    told: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(told) < MAX_CAUSES:
        frames = "".join(traceback.format_tb(cause.__traceback__))
        told.append(f"{frames}{type(cause).__name__}: {first_line(cause)}\n")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\n".join(reversed(told))


def forward(logger: Logger) -> None:
    """What libraries log comes as lines like our own, for as long as the process lives."""
    logging.getLogger().addHandler(_Forward(logger))


class _Forward(logging.Handler):
    def __init__(self, logger: Logger) -> None:
        super().__init__(logging.WARNING)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        said = record.getMessage() + (traceback_of(error) if error else "")
        self._logger.warning("library", source=record.name, said=said)


def _bounded(value: Any) -> Any:
    if not isinstance(value, str) or len(value) <= MAX_FIELD_CHARACTERS:
        return value
    # What went wrong stands at the end of a traceback.
    return CUT + value[-MAX_FIELD_CHARACTERS:]
