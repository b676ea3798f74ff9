"""Statements that travel together: prepared once a connection, answered in one round trip.

A read is one statement that matters, and several around it that begin it, hold its tables and
end it. psycopg's own pipeline waits for the socket several times a statement: an empty read
took 0.45 ms of this process, and takes 0.06 ms here. What is here knows only what reads need:
named placeholders, rows as dicts, and parameters as text, whose types the server infers from
where they stand, so that a statement is prepared once whatever its values.

After any error or cancellation a pipeline is out of step, and its connection is to be closed.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Generic, LiteralString, TypeVar

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import AsyncRowFactory, tuple_row
from psycopg_pool import AsyncConnectionPool

from infra import database

# By a connection; beyond it a statement is parsed each time. There are some dozens in the code.
MAX_PREPARED = 200
EXCHANGE_SECONDS = database.STATEMENT_TIMEOUT_MS / 1_000 + database.ANSWER_GRACE_SECONDS

T = TypeVar("T")

Row = dict[str, Any]
# From the names of the columns to what makes a row of their values.
Shape = Callable[[tuple[str, ...]], Callable[[Sequence[Any]], T]]

NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})

_PLACEHOLDER = re.compile(r"%(?:%|\((\w+)\)s)")


class Sent(Generic[T]):
    """A statement on its way; its rows are there once it was exchanged."""

    __slots__ = ("rows", "shape")

    def __init__(self, shape: Shape[T]) -> None:
        self.shape = shape
        self.rows: list[T] = []


def as_dicts(names: tuple[str, ...]) -> Callable[[Sequence[Any]], Row]:
    return lambda values: dict(zip(names, values, strict=True))


class Pipeline:
    """Of one connection. From the first `send` to `end`, nothing else may use it."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._pgconn: PGconn = connection.pgconn
        self._transformer = Transformer(connection)
        self._prepared: dict[LiteralString, bytes] = {}
        self._owed: list[Sent[Any]] = []
        self._is_in_step = True

    def send(
        self, statement: LiteralString, arguments: Mapping[str, Any] = NO_ARGUMENTS
    ) -> Sent[Row]:
        """With the next exchange. Raises psycopg's DataError for a value that has no text."""
        return self.send_for(as_dicts, statement, arguments)

    def send_for(
        self, shape: Shape[T], statement: LiteralString, arguments: Mapping[str, Any]
    ) -> Sent[T]:
        """As `send`, for rows of another shape than dicts."""
        text, names = _numbered(statement)
        values = [self._dumped(arguments[name]) for name in names]
        self._pgconn.enter_pipeline_mode()  # costs nothing where it is in it
        self._pgconn.send_query_prepared(self._name(statement, text), values)
        sent = Sent(shape)
        self._owed.append(sent)
        return sent

    async def exchange(self) -> None:
        """What was sent, if anything was. Raises psycopg's error of the first that failed."""
        if not self._owed:
            return
        self._is_in_step = False
        try:
            async with asyncio.timeout(EXCHANGE_SECONDS):
                await self._exchange()
            self._is_in_step = True
        except TimeoutError:
            raise psycopg.OperationalError("the database does not answer") from None

    async def end(self, statement: LiteralString) -> None:
        """The last exchange; then the connection is as any other.

        Raises OperationalError if it can't be: what was before has failed, or left a transaction.
        """
        if not self._is_in_step:
            raise psycopg.OperationalError("the pipeline is out of step")
        self.send(statement)
        await self.exchange()
        self._pgconn.exit_pipeline_mode()
        if self._pgconn.transaction_status != TransactionStatus.IDLE:
            raise psycopg.OperationalError("a transaction was left open")

    def _name(self, statement: LiteralString, text: bytes) -> bytes:
        name = self._prepared.get(statement)
        if name is None:
            is_kept = len(self._prepared) < MAX_PREPARED
            name = b"read %d" % len(self._prepared) if is_kept else b""
            self._pgconn.send_prepare(name, text)
            self._owed.append(Sent(as_dicts))
            if is_kept:
                self._prepared[statement] = name
        return name

    def _dumped(self, value: Any) -> bytes | None:
        if value is None:
            return None
        dumped = self._transformer.get_dumper(value, PyFormat.TEXT).dump(value)
        return None if dumped is None else bytes(dumped)

    async def _exchange(self) -> None:
        owed, self._owed = self._owed, []
        self._pgconn.pipeline_sync()
        await self._flush()
        failed: PGresult | None = None
        for sent in owed:
            result = await self._result()
            if result.status == ExecStatus.TUPLES_OK:
                sent.rows = self._rows(result, sent.shape)
            elif result.status == ExecStatus.FATAL_ERROR:
                failed = failed or result
            self._pgconn.get_result()  # each statement's results end with none
        await self._result()  # the server has come to the end of the exchange
        if failed is not None:
            raise error_from_result(failed)

    async def _flush(self) -> None:
        while self._pgconn.flush():
            await self._ready(to_write=True)
            self._pgconn.consume_input()

    async def _result(self) -> PGresult:
        while self._pgconn.is_busy():
            await self._ready()
            self._pgconn.consume_input()
        result = self._pgconn.get_result()
        if result is None:
            raise psycopg.OperationalError("the connection to the database is lost")
        return result

    async def _ready(self, *, to_write: bool = False) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        socket = self._pgconn.socket
        loop.add_reader(socket, wake)
        if to_write:
            loop.add_writer(socket, wake)
        try:
            await ready
        finally:
            loop.remove_reader(socket)
            if to_write:
                loop.remove_writer(socket)

    def _rows(self, result: PGresult, shape: Shape[T]) -> list[T]:
        names = tuple((result.fname(n) or b"").decode() for n in range(result.nfields))
        self._transformer.set_pgresult(result)
        return self._transformer.load_rows(0, result.ntuples, shape(names))


class Connection(database.Connection):
    """One with a pipeline."""

    def __init__(self, pgconn: PGconn, row_factory: AsyncRowFactory[Any] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.own_pipeline = Pipeline(self)


Pool = AsyncConnectionPool[Connection]


def pool(url: str, *, name: str, size: int) -> Pool:
    """A pool that is not open yet: `async with` opens it.

    Each statement is planned once a connection, whatever its values: planning over the
    partitions of many years costs more than what it plans for. Nor is it compiled: a generic
    plan's guess of a cost is easily high enough, and compiling takes longer than any.
    """
    settings = {"plan_cache_mode": "force_generic_plan", "jit": "off"}
    return database.pool_of(Connection, url, name=name, size=size, settings=settings)


@lru_cache(maxsize=2 * MAX_PREPARED)
def _numbered(statement: LiteralString) -> tuple[bytes, tuple[str, ...]]:
    """As PostgreSQL numbers placeholders, and the names in that order."""
    numbers: dict[str, int] = {}

    def numbered(placeholder: re.Match[str]) -> str:
        name = placeholder[1]
        return "%" if name is None else f"${numbers.setdefault(name, len(numbers) + 1)}"

    text = _PLACEHOLDER.sub(numbered, statement)
    return text.encode(), tuple(numbers)
