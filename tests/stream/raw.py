"""A WebSocket client that says whatever bytes it is told to, well-formed or not."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import cycle
from typing import NamedTuple
from urllib.parse import urlsplit

WAIT_SECONDS = 60.0
KEY = "dGhlIHNhbXBsZSBub25jZQ=="

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def frame(
    payload: bytes,
    opcode: int = TEXT,
    *,
    fin: bool = True,
    reserved: int = 0,
    is_masked: bool = True,
    length: int | None = None,
) -> bytes:
    """RFC 6455, section 5.2; `length` is what it says of itself, `reserved` three bits."""
    said = len(payload) if length is None else length
    first = fin << 7 | reserved << 4 | opcode
    mask_bit = is_masked << 7
    if said < 126:
        header = bytes((first, mask_bit | said))
    elif said < 65_536:
        header = bytes((first, mask_bit | 126)) + said.to_bytes(2)
    else:
        header = bytes((first, mask_bit | 127)) + said.to_bytes(8)
    return header + (masked(payload) if is_masked else payload)


def masked(payload: bytes) -> bytes:
    if len(payload) > 1_000:
        return bytes(4) + payload
    mask = os.urandom(4)
    return mask + bytes(byte ^ of_mask for byte, of_mask in zip(payload, cycle(mask), strict=False))


class Came(NamedTuple):
    opcode: int
    payload: bytes


class Raw:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """As far as the server takes it."""
        with suppress(ConnectionError):
            self.writer.write(data)
            async with asyncio.timeout(WAIT_SECONDS):
                await self.writer.drain()

    async def next(self) -> Came | None:
        """None at the connection's end."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                first, second = await self.reader.readexactly(2)
                length = second
                if second == 126:
                    length = int.from_bytes(await self.reader.readexactly(2))
                elif second == 127:
                    length = int.from_bytes(await self.reader.readexactly(8))
                return Came(first & 15, await self.reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def close_code(self) -> int | None:
        """Of the server's closing frame; None if it closed without a word."""
        while came := await self.next():
            if came.opcode == CLOSE:
                return int.from_bytes(came.payload[:2])
        return None


def narrow(url: str) -> socket.socket:
    """A connection that takes little that is not read."""
    address = urlsplit(url)
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect((address.hostname, address.port))
    one.setblocking(False)
    return one


@asynccontextmanager
async def opened(url: str, token: str | None = None) -> AsyncIterator[Raw]:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(sock=narrow(url))
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    writer.write(
        f"GET /v1/stream HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
        f"{authorization}\r\n".encode()
    )
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            response = await reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in response, response
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()
