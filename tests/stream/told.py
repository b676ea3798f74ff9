"""One chat's history as the server would tell it: as events, and as a page at any position.

A small model of the server, for tests of a client that has no server.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Self

Json = dict[str, Any]

ANN = "00000000-0000-7000-8000-00000000000a"
BOB = "00000000-0000-7000-8000-00000000000b"
EVE = "00000000-0000-7000-8000-00000000000e"
CHAT = "00000000-0000-7000-8000-0000000000cc"
PEOPLE = (ANN, BOB, EVE)
NAMES = {ANN: "Ann", BOB: "Bob", EVE: "Eve"}
BEGAN = datetime(2026, 4, 1, 10, 0, tzinfo=UTC)
EMOJI = "👍"


class Told:
    """Eve leaves and joins; Ann is the one who is told."""

    def __init__(self) -> None:
        self.first = self.last = 1
        self.events: list[Json] = []
        self._pages: dict[int, list[Json]] = {1: []}
        self._members: dict[int, list[str]] = {1: list(PEOPLE)}

    @classmethod
    def of(cls, steps: list[Any]) -> Self:
        told = cls()
        for step in steps:
            told.do(*step)
        return told

    def do(self, kind: str, *arguments: Any) -> None:
        """What can't be done then, is not done."""
        getattr(self, f"_{kind}")(*arguments)

    def page(self, position: int) -> list[Json]:
        return _copied(self._pages[position])

    def members(self, position: int) -> list[Json]:
        return [{"user": _user(one)} for one in self._members[position]]

    def chat(self) -> Json:
        return {
            "id": CHAT,
            "name": "Friends",
            "slug": "friends",
            "peer": None,
            "unread_count": 0,
            "last_message_at": None,
            "created_at": _at(0),
        }

    def state(self, position: int) -> Json:
        contacts = [{"user": _user(one)} for one in PEOPLE]
        return {"position": position, "chats": [self.chat()], "contacts": contacts}

    def frame(self, kind: str, data: Json) -> Json:
        """The next event; the page is as it was."""
        self._happens(kind, data, _copied(self._pages[self.last]), self._members[self.last])
        return self.events[-1]

    def _happens(self, kind: str, data: Json, page: list[Json], members: list[str]) -> None:
        self.last += 1
        self._pages[self.last], self._members[self.last] = page, members
        self.events.append(
            {
                "op": "event",
                "position": self.last,
                "type": kind,
                "chat_id": data.get("chat_id"),
                "data": data,
            }
        )

    # ------------------------------------------------------------------------ messages

    def _send(self, sender_id: str, reply_to: Json | None = None) -> None:
        if sender_id in self._members[self.last]:
            number = len(self._pages[self.last]) + 1
            self._say(sender_id, f"text {number}", {}, reply_to)

    def _reply(self, at: int) -> None:
        row = self._row(at)
        if row is not None:
            content = "[Message Deleted]" if row["is_deleted"] else row["content"]
            quoted = {"id": row["id"], "sender": row["sender"], "content": content}
            self._send(BOB, quoted)

    def _say(self, sender_id: str | None, content: str, metadata: Json, reply_to: Any) -> None:
        page, members = _copied(self._pages[self.last]), self._members[self.last]
        number, position = len(page) + 1, self.last + 1
        message_id = f"00000000-0000-7000-8000-{number:012}"
        sender = sender_id and {"id": sender_id, "display_name": NAMES[sender_id]}
        shared: Json = {
            "chat_id": CHAT,
            "sender": sender,
            "content": content,
            "metadata": metadata,
            "reply_to": reply_to,
            "created_at": _at(position),
        }
        recipients = [one for one in members if one != sender_id] if sender_id == ANN else []
        page.append(
            {
                **shared,
                "id": message_id,
                "seq": number,
                "position": position,
                "is_edited": False,
                "is_deleted": False,
                "reacted": [],
                "recipients": [{"user_id": one, "status": "pending"} for one in recipients],
            }
        )
        kind = "message_sent" if sender_id else "system_message_sent"
        data = {**shared, "message_id": message_id, "sender_id": sender_id}
        self._happens(kind, data, page, members)

    def _edit(self, at: int) -> None:
        row = self._row(at)
        if row is None or row["is_deleted"] or row["sender"] is None:
            return
        content = f"edited at {self.last + 1}"

        def change(row: Json) -> None:
            row["content"], row["is_edited"] = content, True

        self._change(row, change, "message_edited", content=content)

    def _delete(self, at: int) -> None:
        row = self._row(at)
        if row is None or row["is_deleted"] or row["sender"] is None:
            return

        def change(row: Json) -> None:
            row.update(content="[Deleted]", is_deleted=True, reacted=[])

        self._change(row, change, "message_deleted", content="[Message Deleted]", by=ANN)

    def _react(self, at: int, user_id: str) -> None:
        self._change_reaction(at, user_id, "reaction_added")

    def _unreact(self, at: int, user_id: str) -> None:
        self._change_reaction(at, user_id, "reaction_removed")

    def _change_reaction(self, at: int, user_id: str, kind: str) -> None:
        row = self._row(at)
        is_added = kind == "reaction_added"
        if row is None or row["is_deleted"] or row["sender"] is None:
            return
        who = [one for reaction in row["reacted"] for one in reaction["user_ids"]]
        if (user_id in who) == is_added:
            return
        left = [*who, user_id] if is_added else [one for one in who if one != user_id]

        def change(row: Json) -> None:
            row["reacted"] = [{"emoji": EMOJI, "user_ids": left}] if left else []

        self._change(row, change, kind, user_id=user_id, emoji=EMOJI)

    def _change(self, row: Json, change: Callable[[Json], None], kind: str, **fields: Any) -> None:
        """The message, and what replies to it shows."""
        page = _copied(self._pages[self.last])
        for one in page:
            if one["id"] == row["id"]:
                change(one)
            elif one["reply_to"] and one["reply_to"]["id"] == row["id"] and "content" in fields:
                one["reply_to"]["content"] = fields["content"]
        data = {"chat_id": CHAT, "message_id": row["id"], **fields}
        self._happens(kind, data, page, self._members[self.last])

    def _row(self, at: int) -> Json | None:
        page = self._pages[self.last]
        return page[at] if at < len(page) else None

    # ------------------------------------------------------------- receipts and members

    def _deliver(self, at: int, user_id: str) -> None:
        self._mark(at, user_id, "delivered", "messages_delivered")

    def _read(self, at: int, user_id: str) -> None:
        self._mark(at, user_id, "read", "messages_read")

    def _mark(self, at: int, user_id: str, status: str, kind: str) -> None:
        row = self._row(at)
        if row is None or user_id not in self._members[self.last]:
            return
        page = _copied(self._pages[self.last])
        for one in page[: at + 1]:
            for recipient in one["recipients"]:
                if recipient["user_id"] == user_id and recipient["status"] != "read":
                    recipient["status"] = status
        up_to = row["position"]
        read_up_to = up_to if status == "read" else None
        mark = {"user_id": user_id, "delivered_up_to": up_to, "read_up_to": read_up_to}
        data = {"chat_id": CHAT, "marks": [mark]}
        self._happens(kind, data, page, self._members[self.last])

    def _leave(self) -> None:
        self._move(EVE in self._members[self.last], "member_left", [ANN, BOB])

    def _join(self) -> None:
        self._move(EVE not in self._members[self.last], "members_added", list(PEOPLE))

    def _move(self, may: bool, kind: str, members: list[str]) -> None:
        if not may:
            return
        data = {"chat_id": CHAT, "by": ANN, "user_id": EVE, "user_ids": [EVE]}
        self._happens(kind, data, _copied(self._pages[self.last]), members)
        actor = EVE if kind == "member_left" else ANN
        system = {"kind": kind, "actor_id": actor, "user_ids": [EVE]}
        self._say(None, "a sentence", {"system": system}, None)


def _user(user_id: str) -> Json:
    name = NAMES[user_id]
    return {"id": user_id, "username": name.lower(), "display_name": name, "status": "offline"}


def _at(position: int) -> str:
    return (BEGAN + timedelta(seconds=position)).isoformat()


def _copied(page: list[Json]) -> list[Json]:
    return [
        {
            **row,
            "reply_to": row["reply_to"] and dict(row["reply_to"]),
            "recipients": [dict(one) for one in row["recipients"]],
        }
        for row in page
    ]
