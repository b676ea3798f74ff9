"""One WebSocket as the server sees it: uvicorn's protocol, without what costs a broadcast.

A frame that goes to many is made once (`text_frame`) and written to each transport as it is:
no compression, no queue, no task between. Whatever comes in is handed over as it comes
(`listener`). A client that does not read is closed before MAX_BUFFERED_BYTES wait for it; one
that sends what is no well-formed WebSocket text is closed with MALFORMED, whatever RFC 6455
would call it: contract.md has one code for that.

Rests on the insides of uvicorn's `WebSocketsSansIOProtocol`; requirements.txt pins them.
"""

import random
from typing import Any, Protocol

import msgspec
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

NOT_AUTHENTICATED = 4001
SESSION_ENDED = 4003
TOO_SLOW = 4008
MALFORMED = 4009
SERVER_RESTARTING = 1012
TRY_AGAIN_LATER = 1013

SOCKET = "messenger.socket"  # in the ASGI scope's extensions

MAX_FRAME_BYTES = 1_100_000  # the largest command, and what is around it
MAX_PIECES = 1_000  # of one text
MAX_BUFFERED_BYTES = 1024 * 1024
# From here on a catch-up waits; live frames do not.
HIGH_WATER_BYTES = 256 * 1024
CLOSE_SECONDS = 5.0
# Who was too slow to read on is not quicker to read that; what waits for them grows no more.
SLOW_CLOSE_SECONDS = 30.0
PAUSE_SECONDS = 0.05
MAX_REASON_BYTES = 120
RETURN_SECONDS = 5.0


class Listener(Protocol):
    """What a socket tells; none of it may wait."""

    @property
    def is_full(self) -> bool:
        """Whether it takes nothing more for now; then nothing more is read."""
        ...

    def received(self, frame: bytes) -> None: ...

    def pay(self) -> None:
        """For a frame that is no whole text."""
        ...

    def heard(self) -> None: ...


class Socket(WebSocketsSansIOProtocol):
    """The transport's end of a connection. `listener` is there from acceptance on."""

    listener: Listener | None = None

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if self.response.status_code == 101:
            self.scope["extensions"][SOCKET] = self  # type: ignore[assignment]
            self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def data_received(self, data: bytes) -> None:
        if self.listener is not None:
            self.listener.heard()
        super().data_received(data)

    def handle_text(self, event: Any) -> None:
        if self.listener is None or not event.fin:
            super().handle_text(event)
        elif not self.close_sent:
            self.listener.received(bytes(event.data))

    def handle_cont(self, event: Any) -> None:
        if self.close_sent or self.listener is None:
            return
        self.listener.pay()
        if len(self.frames) == MAX_PIECES:
            self.end(MALFORMED, f"a text may come in at most {MAX_PIECES} pieces")
        super().handle_cont(event)

    def handle_ping(self) -> None:
        """Answered at once, like all that is written: who reads no answers gets none."""
        pong = b"".join(self.conn.data_to_send())
        if self.listener is not None:
            self.listener.pay()
        if not self.push(pong):
            self.end(TOO_SLOW, "too much waits to be read: resume")

    def handle_pong(self, event: Any) -> None:
        if self.listener is not None:
            self.listener.pay()

    def send_receive_event_to_app(self) -> None:
        """A frame that came in fragments, or before anybody listens."""
        data, self.frames = b"".join(self.frames), []
        if self.close_sent or self.listener is None:
            return
        if self.curr_msg_data_type == "text":
            self.listener.received(data)
        else:
            self.end(MALFORMED, "frames are text")

    def handle_parser_exception(self) -> None:
        reason = str(self.conn.parser_exc or "not a WebSocket frame")
        if not self.close_sent:
            # What the parser would have said itself stays unsaid.
            self.conn.data_to_send()
            self._leave(MALFORMED, reason)

    def push(self, frame: bytes) -> bool:
        """Writes what `text_frame` made; False if too much waits for the client already."""
        if self.close_sent or self.disconnected:
            return True
        if self.transport.get_write_buffer_size() > MAX_BUFFERED_BYTES:
            return False
        self.transport.write(frame)
        return True

    async def drained(self) -> None:
        """Until little waits for the client, or nobody is there any more."""
        await self.writable.wait()

    @property
    def is_open(self) -> bool:
        return not self.close_sent and not self.disconnected

    def pause(self, seconds: float) -> None:
        """Reads nothing for so long."""
        if self.is_open and not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()
            self.loop.call_later(seconds, self.resume)

    def resume(self) -> None:
        if not self.read_paused or self.disconnected:
            return
        if self.is_open and self.listener is not None and self.listener.is_full:
            self.listener.heard()  # that it is not read is no silence of the client's
            self.loop.call_later(PAUSE_SECONDS, self.resume)
        else:
            self.read_paused = False
            self.transport.resume_reading()

    def end(self, code: int, reason: str) -> None:
        """Says goodbye, and waits for the client to say it too, but not for ever."""
        if self.is_open:
            self._leave(code, reason)

    def shutdown(self) -> None:
        """The process stops: the clients are told to come back, not all at once."""
        if self.handshake_complete and self.is_open:
            self._leave(SERVER_RESTARTING, return_reason())
            self.transport.close()
        elif self.close_sent and self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().shutdown()

    def _leave(self, code: int, reason: str) -> None:
        said = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        self.transport.write(close_frame(code, said))
        self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": said})
        self.resume()
        seconds = SLOW_CLOSE_SECONDS if code == TOO_SLOW else CLOSE_SECONDS
        self.close_timer = self.loop.call_later(seconds, self.transport.abort)


def return_reason() -> str:
    """When a client that is sent away shall come back: spread, so that not all do at once."""
    delay_ms = int(1000 * random.uniform(0, RETURN_SECONDS))
    return msgspec.json.encode({"reconnect_ms": delay_ms}).decode()


def text_frame(payload: bytes) -> bytes:
    """A whole text message, as a server sends it: RFC 6455, section 5.2."""
    return _header(0x81, len(payload)) + payload


def close_frame(code: int, reason: str) -> bytes:
    payload = code.to_bytes(2) + reason.encode()
    return _header(0x88, len(payload)) + payload


def _header(first: int, length: int) -> bytes:
    if length < 126:
        return bytes((first, length))
    if length < 65_536:
        return bytes((first, 126)) + length.to_bytes(2)
    return bytes((first, 127)) + length.to_bytes(8)
