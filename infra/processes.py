"""What became of each process, by what PostgreSQL knows of its connections.

Every process keeps a connection that bears its role, id and host (`database.process_name`), and says
something on it more than once a second: one that is connected and silent is stopped or hangs, one
without a connection is gone. `Processes` remembers what it saw, so that an end between two looks is
told, and a pause between two connections is not taken for one.
"""

import re
from collections.abc import Iterable
from typing import Any, Literal, LiteralString, NamedTuple

import msgspec

from infra.database import Connection

# Longer than what a healthy process may wait for NATS before it says something to PostgreSQL.
SILENT_SECONDS = 4.0
# Longer than the pauses in which a relay or projector connects anew.
GONE_SECONDS = 3.0
# Longer than the pauses in which a projector tries an event again.
RETRIED_SECONDS = 15.0
REMEMBERED_SECONDS = 60.0
# Longer than the pauses, grown while PostgreSQL was away, after which all are there again.
RECOVERY_SECONDS = 8.0
# Who has not looked for so long has not seen what ended.
LOOKED_AWAY_SECONDS = 10.0
MAX_PROCESSES = 200

# Of other roles only the names are seen, by who may not read all statistics.
CONNECTED = """
    SELECT
        a.application_name,
        extract(epoch FROM clock_timestamp() - min(a.backend_start))::float8 AS connected_seconds,
        min(
            CASE
                WHEN a.state = 'active' AND a.wait_event_type IS DISTINCT FROM 'Client' THEN 0
                ELSE greatest(0, extract(epoch FROM clock_timestamp() - a.state_change))
            END
        )::float8 AS heard_seconds
    FROM pg_stat_activity AS a
    WHERE a.datname = current_database() AND a.application_name LIKE 'messenger %%@%%'
    GROUP BY a.application_name
    ORDER BY a.application_name
    LIMIT %(most)s
"""

# What the owner of the tables sees, where roles are apart (infra/production/roles.sql).
HAS_HEARD = """
    SELECT to_regprocedure('public.heard_v1()') IS NOT NULL
"""

HEARD = """
    SELECT application_name, connected_seconds, heard_seconds
    FROM public.heard_v1()
    LIMIT %(most)s
"""

# A projector that stands still records it anew with each attempt.
RETRIED = """
    SELECT
        f.projection,
        extract(epoch FROM clock_timestamp() - f.failed_at)::float8 AS seconds
    FROM projection_failures AS f
    LEFT JOIN projection_checkpoints AS c ON c.projection = f.projection
    WHERE f.position > coalesce(c.position, 0)
"""

PROJECTOR = "projector "
KEYS = "keys"  # of a process with projectors, also while they wait
NAME = re.compile(r"messenger (api|relay|maintain|keys|projector \w+) (\d+@.*)")

ProcessState = Literal["alive", "failed", "silent", "gone", "missing", "unknown"]


class Process(msgspec.Struct, frozen=True):
    """`process` is PID@HOST; null where none of this role was seen."""

    role: str
    process: str | None
    state: ProcessState
    heard_seconds: float | None = None
    connected_seconds: float | None = None


class Sighting(NamedTuple):
    """One look: names of connections with the seconds since they were made and heard; projections
    that stand still, with the seconds since the last attempt."""

    connected: list[tuple[str, float | None, float | None]]
    retried: dict[str, float]

    def is_retrying(self, role: str) -> bool:
        return self.retried.get(role.removeprefix(PROJECTOR), RETRIED_SECONDS) < RETRIED_SECONDS

    def stands_still(self, role: str) -> bool:
        return role.removeprefix(PROJECTOR) in self.retried


async def sight(connection: Connection) -> Sighting:
    connected = await _rows(connection, CONNECTED, {"most": MAX_PROCESSES})
    if any(connected_seconds is None for _, connected_seconds, _ in connected):
        connected = await _of_owner(connection, connected)
    return Sighting(connected, dict(await _rows(connection, RETRIED)))


async def _of_owner(connection: Connection, connected: list[Any]) -> list[Any]:
    [[has_heard]] = await _rows(connection, HAS_HEARD)
    heard = await _rows(connection, HEARD, {"most": MAX_PROCESSES}) if has_heard else []
    known = {name: (name, *rest) for name, *rest in heard}
    return [row if row[1] is not None else known.get(row[0], row) for row in connected]


async def _rows(
    connection: Connection, statement: LiteralString, arguments: dict[str, int] | None = None
) -> list[Any]:
    return await (await connection.execute(statement, arguments)).fetchall()


class Processes:
    """`roles` are those that there should be; `now` is any clock in seconds."""

    def __init__(self, roles: Iterable[str]) -> None:
        self._roles = tuple(roles)
        self._seen: dict[tuple[str, str], Process] = {}
        self._seen_at: dict[tuple[str, str], float] = {}
        self._missing_since: dict[str, float] = {}
        self._looked_at = float("-inf")
        self._was_away = False

    def look(self, sighting: Sighting, now: float) -> list[Process]:
        if now - self._looked_at > LOOKED_AWAY_SECONDS:
            self._missing_since.clear()
        if self._was_away:
            self._wait_for_all(now + RECOVERY_SECONDS - GONE_SECONDS)
        self._looked_at, self._was_away = now, False
        connected = self._take(sighting, now)
        self._forget(now)
        found = [self._as_now(key, connected, sighting, now) for key in self._seen]
        found += self._missing(found, sighting, now)
        return sorted(found, key=lambda one: (self._order(one.role), one.process or ""))

    def unknown(self) -> list[Process]:
        """While nobody can tell."""
        self._was_away = True
        return [Process(one.role, one.process, "unknown") for one in self._seen.values()]

    def _wait_for_all(self, since: float) -> None:
        """Nobody is taken for gone or missing before they had time to connect again."""
        self._seen = {
            key: Process(one.role, one.process, "unknown") for key, one in self._seen.items()
        }
        self._seen_at = dict.fromkeys(self._seen_at, since)
        self._missing_since = dict.fromkeys(self._roles, since)

    def _take(self, sighting: Sighting, now: float) -> set[str]:
        """Processes with any connection."""
        connected: set[str] = set()
        for name, connected_seconds, heard_seconds in sighting.connected:
            match = NAME.fullmatch(name)
            if match is None:
                continue
            role, process = match.groups()
            connected.add(process)
            if role != KEYS:
                is_silent = heard_seconds is not None and heard_seconds > SILENT_SECONDS
                self._seen[role, process] = Process(
                    role,
                    process,
                    "silent" if is_silent else "alive",
                    _rounded(heard_seconds),
                    _rounded(connected_seconds),
                )
                self._seen_at[role, process] = now
        return connected

    def _forget(self, now: float) -> None:
        """The longest gone first."""
        for key in sorted(self._seen_at, key=lambda key: self._seen_at[key]):
            is_old = now - self._seen_at[key] > REMEMBERED_SECONDS
            if is_old or len(self._seen) > MAX_PROCESSES:
                del self._seen[key], self._seen_at[key]

    def _as_now(
        self, key: tuple[str, str], connected: set[str], sighting: Sighting, now: float
    ) -> Process:
        one, age_seconds = self._seen[key], now - self._seen_at[key]
        is_failing = sighting.is_retrying(one.role)
        if age_seconds == 0:
            return _with(one, "failed") if is_failing and one.state == "alive" else one
        if one.state == "unknown" and age_seconds <= GONE_SECONDS:
            return one
        if one.process in connected and sighting.stands_still(one.role):
            return _with(one, "failed" if is_failing else "silent", age_seconds)
        if one.process in connected or age_seconds <= GONE_SECONDS:
            return _with(one, one.state, age_seconds)
        return Process(one.role, one.process, "gone", _rounded(age_seconds))

    def _missing(
        self, found: Iterable[Process], sighting: Sighting, now: float
    ) -> Iterable[Process]:
        """Roles that nobody has. One that retries a failed event is seldom connected."""
        there = {one.role for one in found if one.state != "gone"}
        gone = {one.role for one in found if one.state == "gone"}
        self._missing_since = {
            role: self._missing_since.get(role, now) for role in self._roles if role not in there
        }
        for role, since in self._missing_since.items():
            if sighting.is_retrying(role):
                yield Process(role, None, "failed")
            elif role not in gone:
                yield Process(role, None, "missing" if now - since > GONE_SECONDS else "unknown")

    def _order(self, role: str) -> int:
        return self._roles.index(role) if role in self._roles else len(self._roles)


def _with(one: Process, state: ProcessState, heard_seconds: float | None = None) -> Process:
    heard = one.heard_seconds if heard_seconds is None else _rounded(heard_seconds)
    return Process(one.role, one.process, state, heard, one.connected_seconds)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
