"""Where a chat is shown and typed: a whole screen on a terminal, plain lines on a pipe.

On a screen the conversation is drawn anew when it changes, so an edit or a read mark stands where
the message does; on a pipe what changes is said on a line of its own, and nothing is said twice.
"""

import codecs
import os
import sys
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.text import Text

from api.chat.editing import MAX_LINE_CHARACTERS, Editor
from api.chat.view import View
from api.chat.wording import Line, failed

INPUT = 0
CHUNK_BYTES = 4096
MAX_ENTRIES = 1_000
# Not drawn more often than this: a catch-up would be drawn a thousand times.
DRAW_SECONDS = 0.05
CURSOR = "\N{LEFT ONE QUARTER BLOCK}"


class Moment(NamedTuple):
    """What a whole screen shows besides the lines."""

    view: View
    title: str
    status: str


class Screen(Protocol):
    @property
    def is_ended(self) -> bool: ...

    @property
    def is_composing(self) -> bool: ...

    def take(self, chunk: str) -> list[str]:
        """The lines that are finished with this; an empty chunk is the end of all input."""
        ...

    def show(self, lines: Iterable[Line]) -> None: ...

    def clear(self) -> None:
        """What follows is another chat's."""
        ...

    def draw(self, moment: Moment) -> None: ...


class Plain:
    """Lines in, lines out."""

    is_composing = False

    def __init__(self) -> None:
        self._begun = ""
        self.is_ended = False

    def take(self, chunk: str) -> list[str]:
        *lines, self._begun = (self._begun + chunk).split("\n")
        if not chunk:
            self.is_ended = True
            lines.append(self._begun)
        elif len(self._begun) > MAX_LINE_CHARACTERS:
            self._begun = ""
            self.show([failed(f"a line of more than {MAX_LINE_CHARACTERS} characters is left out")])
        return lines

    def show(self, lines: Iterable[Line]) -> None:
        for line in lines:
            print(line.text)
        sys.stdout.flush()

    def clear(self) -> None:
        pass

    def draw(self, moment: Moment) -> None:
        pass


class Whole:
    """The whole of a terminal; what it shows of a message is what the view knows of it now."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._editor = Editor()
        self._entries: deque[Line] = deque(maxlen=MAX_ENTRIES)
        self._drawn_at = 0.0

    @property
    def is_ended(self) -> bool:
        return self._editor.is_ended

    @property
    def is_composing(self) -> bool:
        return bool(self._editor.text) and not self._editor.text.startswith("/")

    def take(self, chunk: str) -> list[str]:
        self._drawn_at = 0.0
        return self._editor.feed(chunk or "\x15\x04")

    def show(self, lines: Iterable[Line]) -> None:
        self._entries.extend(line for line in lines if not line.is_passing)

    def clear(self) -> None:
        self._entries.clear()

    def draw(self, moment: Moment) -> None:
        now = time.monotonic()
        if now - self._drawn_at >= DRAW_SECONDS:
            self._drawn_at = now
            self._live.update(self._drawing(moment), refresh=True)

    def _drawing(self, moment: Moment) -> Group:
        console = self._live.console
        width, height = console.size
        typed = Text(f"> {self._editor.text}{CURSOR}").wrap(console, width)[-3:]
        room = max(1, height - 2 - len(typed))
        body = self._body(moment.view, width, room)
        filling = [Text("")] * (room - len(body))
        status = Text(moment.status, "dim", no_wrap=True, overflow="ellipsis")
        return Group(Rule(Text(moment.title)), *filling, *body, status, *typed)

    def _body(self, view: View, width: int, room: int) -> list[Text]:
        """The last lines that there is room for."""
        body: list[Text] = []
        waiting = [Text(f"… {text}", "dim") for text in view.waiting.values()]
        for text in [*reversed(waiting), *self._newest_first(view)]:
            body = [*text.wrap(self._live.console, width), *body]
            if len(body) >= room:
                break
        return body[-room:]

    def _newest_first(self, view: View) -> Iterator[Text]:
        for entry in reversed(self._entries):
            line = view.line(entry.message_id) if entry.message_id else None
            yield styled(line or entry)


def styled(line: Line) -> Text:
    return Text.assemble(*((part.text, part.style) for part in line.parts))


@contextmanager
def opened() -> Iterator[Screen]:
    """A whole screen if both ends are a terminal, which is left as it was."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        yield Plain()
        return
    before = termios.tcgetattr(INPUT)
    try:
        tty.setcbreak(INPUT)
        console = Console(highlight=False, markup=False, emoji=False)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            yield Whole(live)
    finally:
        termios.tcsetattr(INPUT, termios.TCSADRAIN, before)


def listen(put: Callable[[str], None]) -> None:
    """Hands over what is typed, by a thread that ends with the process: no file descriptor can
    be waited for in every case (a file can't). `put` may wait; an empty chunk is the end."""

    def read() -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while True:
            try:
                data = os.read(INPUT, CHUNK_BYTES)
            except OSError:
                data = b""
            try:
                if chunk := decoder.decode(data, final=not data):
                    put(chunk)
                if not data:
                    put("")
                    return
            except (RuntimeError, CancelledError):
                return  # the loop is closed: nobody listens any more

    threading.Thread(target=read, name="typing", daemon=True).start()
