"""Whom each event of the log concerns: folded from `event_log` by the rules of contract.md.

An event of a chat concerns who is in it from their joining to their leaving, both included; one
between two contacts both of them, but a block only who blocks; an account's own events its user.
What a person is called concerns, besides, who has them as a contact or is in a chat with them or
with what they said. Who catches up later is told so only if it still matters to them then: such
an event may come (`may`), and must (`must`) where it has mattered all the while.
"""

from collections import defaultdict
from typing import Any, LiteralString, NamedTuple

from infra.database import Connection

Json = dict[str, Any]

SINCE: LiteralString = """
    SELECT position, type, data
    FROM event_log
    WHERE position > %s
    ORDER BY position
"""

OWN = ("user_registered", "password_changed")
NAMING = ("profile_updated", "account_deleted")
PRIVATE = ("contact_blocked", "contact_unblocked")
# Presence has no position, and an image is shown with its message.
UNTOLD = ("status_changed", "attachment_uploaded", "attachment_removed")


class Told(NamedTuple):
    """An event, and to whom it must, and may, be shown."""

    position: int
    type: str
    must: set[str]
    may: set[str]


class Concerns:
    """Of what comes after `head`, where nobody of interest is there yet. `read` goes on where it
    stopped."""

    def __init__(self, head: int = 0) -> None:
        self.told: list[Told] = []
        self.members: defaultdict[str, set[str]] = defaultdict(set)
        self.head = self._begin = head
        self._past: defaultdict[str, set[str]] = defaultdict(set)
        self._rows: defaultdict[str, set[str]] = defaultdict(set)
        self._naming: list[tuple[str, Told]] = []
        self._ever: defaultdict[str, set[str]] = defaultdict(set)

    async def read(self, connection: Connection) -> int:
        """The position of the log's last event."""
        rows = await (await connection.execute(SINCE, (self.head,))).fetchall()
        for position, kind, data in rows:
            assert position == self.head + 1, f"{position} comes after {self.head}"
            self.head = position
            self._take(position, kind, data)
        return self.head

    def chats_of(self, user_id: str) -> list[str]:
        return [chat_id for chat_id, members in self.members.items() if user_id in members]

    def must(self, user_id: str, *, after: int, up_to: int) -> list[int]:
        return [one.position for one in self._between(after, up_to) if user_id in one.must]

    def may(self, user_id: str, *, after: int, up_to: int) -> set[int]:
        return {one.position for one in self._between(after, up_to) if user_id in one.may}

    def _between(self, after: int, up_to: int) -> list[Told]:
        return self.told[max(0, after - self._begin) : up_to - self._begin]

    def at(self, position: int) -> Told:
        return self.told[position - self._begin - 1]

    def _take(self, position: int, kind: str, data: Json) -> None:
        concerned = self._concerned(kind, data)
        told = Told(position, kind, concerned, set(concerned))
        self.told.append(told)
        if kind in NAMING:
            self._naming.append((data["user_id"], told))
        for person, earlier in self._naming:
            interested = self._interested(person)
            self._ever[person] |= interested
            earlier.must.intersection_update({person} | interested)
            earlier.may.update(self._ever[person])

    def _concerned(self, kind: str, data: Json) -> set[str]:
        if kind in UNTOLD:
            return set()
        if kind in OWN:
            return {data["user_id"]}
        if kind in NAMING:
            return {data["user_id"]} | self._interested(data["user_id"])
        if kind.startswith("contact_"):
            return self._of_contacts(kind, data)
        return self._of_chat(kind, data)

    def _interested(self, person: str) -> set[str]:
        watching = {user for user, others in self._rows.items() if person in others}
        chats = [
            members
            for chat_id, members in self.members.items()
            if person in members or person in self._past[chat_id]
        ]
        return watching.union(*chats)

    def _of_contacts(self, kind: str, data: Json) -> set[str]:
        pair = (data["user_id"], data["contact_id"])
        standing = data["standing"]
        for user, other in (pair, pair[::-1]):
            has_row = standing.get("requested_by") or user in standing.get("blocked_at", ())
            (self._rows[user].add if has_row else self._rows[user].discard)(other)
        return {data["user_id"]} if kind in PRIVATE else set(pair)

    def _of_chat(self, kind: str, data: Json) -> set[str]:
        chat_id = data["chat_id"]
        before = set(self.members[chat_id])
        joining, leaving = _moves(kind, data, before)
        self.members[chat_id] = (before - leaving) | joining
        self._past[chat_id] |= leaving
        return before | joining


def _moves(kind: str, data: Json, members: set[str]) -> tuple[set[str], set[str]]:
    match kind:
        case "direct_chat_opened" | "members_added":
            return set(data["user_ids"]), set()
        case "group_created":
            return {data["owner_id"], *data["member_ids"]}, set()
        case "member_removed" | "member_left":
            return set(), {data["user_id"]}
        case "group_deleted":
            return set(), members
        case _:
            return set(), set()
