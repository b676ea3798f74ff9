"""The reference client's state: what `GET /v1/state` answered, kept current by the stream's events.

Written from contract.md alone; shares no code with the product. `Reducer.apply` takes the event
frames in order and does no I/O. What an event can not say (a chat that is new to the client or
joined again, which of the unread messages that came before its time a mark covers, who gets a
message in a group whose members it never saw) makes the chat, or the user, `wanted`: whoever
holds the reducer fetches it at the reducer's position or later (`take_chat`, `take_user`). Until
then the chat's events say nothing new, and those up to the position it was fetched at are in it.
"""

from collections.abc import Iterator
from copy import deepcopy
from datetime import datetime
from typing import Any

Json = dict[str, Any]

DELETED = "[Deleted]"
DELETED_REPLY = "[Message Deleted]"
DELETED_USER = "[Deleted User]"
NEVER = "0001-01-01T00:00:00Z"

JOINING = {"direct_chat_opened", "group_created", "members_added"}
LEAVING = {"member_removed", "member_left"}


class Unexpected(AssertionError):
    """An event that the client should never have got"""


class Chat:
    """A chat that the client is in. `row` is as the queries show it, but for `unread_count`."""

    def __init__(self, me: str, row: Json, *, as_of: int, members: set[str] | None) -> None:
        self.me = me
        self.row = row
        self.as_of = as_of
        self.members = members
        # Messages by id that the client knows the place of; of these, the unread ones.
        self.places: dict[str, int] = {}
        self.unread: dict[str, int] = {}
        # So many more are unread, all of them older than what the client has seen.
        self.unseen: int = row.pop("unread_count")
        # Who got the last message, if it is one's own: delivered, and read.
        self.recipients: dict[str, list[bool]] | None = None
        if row["peer"] is not None:
            self.members = {me, row["peer"]["id"]}
        self._look_at_last()

    @property
    def last(self) -> Json | None:
        last: Json | None = self.row["last_message"]
        return last

    @property
    def count(self) -> int:
        return self.unseen + len(self.unread)

    def _look_at_last(self) -> None:
        last = self.last
        self.seen_since = last["position"] if last else self.as_of
        if last is None:
            return
        self.places[last["id"]] = last["position"]
        if self.unseen and self._is_read_by_me(last):
            # Marks are "up to" marks: where anything is unread, the latest is.
            self.unread[last["id"]] = last["position"]
            self.unseen -= 1
        if "delivery" in last:
            self._look_at_delivery(last["delivery"])

    def _is_read_by_me(self, message: Json) -> bool:
        sender = message["sender"]
        return sender is not None and sender["id"] != self.me and not message["is_deleted"]

    def _look_at_delivery(self, delivery: Json) -> None:
        if self.row["peer"] is not None:
            flags = [delivery["delivered"] > 0, delivery["read"] > 0]
            self.recipients = {self.row["peer"]["id"]: flags} if delivery["recipients"] else {}

    # ------------------------------------------------------------------------ messages

    def sent(self, position: int, data: Json) -> bool:
        """False if it takes a look at the chat to know the rest."""
        before = self.last
        message = _message(position, (before["seq"] if before else 0) + 1, data)
        self.row |= {"last_message": message, "last_message_at": data["created_at"]}
        self.places[message["id"]] = position
        self.recipients = None
        if data["sender_id"] == self.me:
            return self._sent_by_me(message)
        if data["sender_id"] is not None:
            self.unread[message["id"]] = position
        return True

    def _sent_by_me(self, message: Json) -> bool:
        if self.members is None:
            return False
        self.recipients = {user: [False, False] for user in self.members - {self.me}}
        self._count_delivery(message)
        return True

    def _count_delivery(self, message: Json) -> None:
        assert self.recipients is not None
        flags = self.recipients.values()
        message["delivery"] = {
            "recipients": len(flags),
            "delivered": sum(delivered for delivered, _ in flags),
            "read": sum(read for _, read in flags),
        }

    def edited(self, data: Json) -> None:
        last = self.last
        if last and last["id"] == data["message_id"]:
            last |= {"content": data["content"], "metadata": data["metadata"]}
            last |= {"is_edited": True, "edited_at": data["edited_at"]}
        for reply in self._replies_to(data["message_id"]):
            reply["content"] = data["content"]

    def deleted(self, data: Json) -> bool:
        last, message_id = self.last, data["message_id"]
        if last and last["id"] == message_id:
            last |= {"content": DELETED, "metadata": {}, "reactions": []}
            last |= {"is_deleted": True, "deleted_at": data["deleted_at"]}
        for reply in self._replies_to(message_id):
            reply["content"] = DELETED_REPLY
        self.unread.pop(message_id, None)
        return message_id in self.places or not self.unseen

    def _replies_to(self, message_id: str) -> Iterator[Json]:
        last = self.last
        if last and last["reply_to"] and last["reply_to"]["id"] == message_id:
            yield last["reply_to"]

    def reacted(self, data: Json, step: int) -> None:
        last = self.last
        if not last or last["id"] != data["message_id"]:
            return
        reactions = {one["emoji"]: one for one in last["reactions"]}
        emoji, is_mine = data["emoji"], data["user_id"] == self.me
        one = reactions.setdefault(emoji, {"emoji": emoji, "count": 0, "me": False})
        one["count"] += step
        if is_mine:
            one["me"] = step > 0
        last["reactions"] = [one for one in reactions.values() if one["count"]]

    # ------------------------------------------------------------------------ receipts

    def marked(self, marks: list[Json]) -> bool:
        known = [self._marked(mark) for mark in marks]
        return all(known)

    def _marked(self, mark: Json) -> bool:
        if mark["user_id"] == self.me:
            return self._read(mark["read_up_to"] or 0)
        last = self.last
        if not last or "delivery" not in last or mark["delivered_up_to"] < last["position"]:
            return True
        if self.recipients is None:
            delivery = last["delivery"]
            return bool(delivery["recipients"] == delivery["read"])
        flags = self.recipients.get(mark["user_id"])
        if flags is not None:
            flags[0] = True
            flags[1] = flags[1] or (mark["read_up_to"] or 0) >= last["position"]
            self._count_delivery(last)
        return True

    def _read(self, up_to: int) -> bool:
        self.unread = {one: place for one, place in self.unread.items() if place > up_to}
        if up_to >= self.seen_since:
            self.unseen = 0
        return not (self.unseen and up_to)

    # --------------------------------------------------------------------------- names

    def named(self, user_id: str, name: str) -> None:
        for person in self._people():
            if person["id"] == user_id:
                person["display_name"] = name

    def erased(self, user_id: str) -> None:
        last = self.last
        if last and _is_from(last, user_id):
            last |= {"content": DELETED, "metadata": {}}
        reply = last["reply_to"] if last else None
        if reply and _is_from(reply, user_id) and reply["content"] != DELETED_REPLY:
            reply["content"] = DELETED

    def _people(self) -> Iterator[Json]:
        """Those who are shown with their names."""
        last = self.last
        if last and last["sender"]:
            yield last["sender"]
        if last and last["reply_to"] and last["reply_to"]["sender"]:
            yield last["reply_to"]["sender"]
        if self.row["peer"]:
            yield self.row["peer"]


class Reducer:
    """`me` is whose state it is. `position` is that of the last event that was applied."""

    def __init__(self, me: str, state: Json) -> None:
        state = deepcopy(state)
        self.me = me
        self.position: int = state["position"]
        self.chats: dict[str, Chat] = {}
        self.contacts: dict[str, Json] = {}
        self.users: dict[str, Json] = {}
        self.wanted_chats: set[str] = set()
        for row in state["chats"]:
            self.chats[row["id"]] = Chat(me, row, as_of=self.position, members=None)
        for row in state["contacts"]:
            user = row.pop("user")
            self.users[user["id"]] = user
            self.contacts[user["id"]] = row

    @property
    def wanted_users(self) -> set[str]:
        """Contacts of whom the client knows the name only."""
        return self.contacts.keys() - self.users.keys()

    def take_chat(self, row: Json, members: set[str], position: int) -> None:
        """The chat and who is in it, both fetched as of `position`."""
        chat_id = row["id"]
        self.chats[chat_id] = Chat(self.me, deepcopy(row), as_of=position, members=set(members))
        self.wanted_chats.discard(chat_id)

    def take_user(self, user: Json) -> None:
        self.users[user["id"]] = dict(user)

    def state(self) -> Json:
        """As `GET /v1/state` would answer at `position`, without cursors."""
        chats = [chat.row | {"unread_count": chat.count} for chat in self.chats.values()]
        counts = sorted((one["id"], one["unread_count"]) for one in chats if one["unread_count"])
        contacts = [row | {"user": self.users[user]} for user, row in self.contacts.items()]
        return deepcopy(
            {
                "position": self.position,
                "chats": sorted(chats, key=_last_active, reverse=True),
                "unread": {
                    "chats": len(counts),
                    "messages": sum(count for _, count in counts),
                    "items": [{"chat_id": chat_id, "count": count} for chat_id, count in counts],
                },
                "contacts": sorted(contacts, key=_made, reverse=True),
            }
        )

    # -------------------------------------------------------------------------- events

    def apply(self, frame: Json) -> None:
        """Raises Unexpected for one that can not come next."""
        if frame["position"] <= self.position:
            raise Unexpected(f"at {self.position} came {frame}")
        self.position = frame["position"]
        if frame["chat_id"] is not None:
            self._apply_to_chat(frame)
        elif frame["type"].startswith("contact_"):
            self._apply_to_contacts(frame["data"])
        else:
            self._apply_to_people(frame["type"], frame["data"])

    def _apply_to_chat(self, frame: Json) -> None:
        chat_id, kind, data = frame["chat_id"], frame["type"], frame["data"]
        chat = self.chats.get(chat_id)
        if chat is not None and frame["position"] <= chat.as_of:
            return
        if kind in JOINING and chat is None:
            self._join(frame)
        elif kind == "group_deleted" or (kind in LEAVING and data["user_id"] == self.me):
            self._leave(chat_id)
        elif chat_id in self.wanted_chats:
            return  # what it says will be in what is fetched
        elif chat is None:
            raise Unexpected(f"of a chat that the client is not in: {frame}")
        elif not _changed(chat, frame):
            self.wanted_chats.add(chat_id)

    def _join(self, frame: Json) -> None:
        data, chat_id = frame["data"], frame["chat_id"]
        if frame["type"] == "group_created":
            people = {data["owner_id"], *data["member_ids"]}
            row = _created(self.me, data, frame["at"])
            self.chats[chat_id] = Chat(self.me, row, as_of=frame["position"], members=people)
        else:
            self.wanted_chats.add(chat_id)

    def _leave(self, chat_id: str) -> None:
        if chat_id not in self.wanted_chats and chat_id not in self.chats:
            raise Unexpected(f"left {chat_id}, where the client was not")
        self.wanted_chats.discard(chat_id)
        self.chats.pop(chat_id, None)

    def _apply_to_contacts(self, data: Json) -> None:
        other = data["contact_id"] if data["user_id"] == self.me else data["user_id"]
        row = deepcopy(data["contact"])
        if row is None:
            # Nobody tells the client any more what they are called.
            self.contacts.pop(other, None)
            self.users.pop(other, None)
            return
        named = row.pop("user")
        assert named["id"] == other
        self.contacts[other] = row
        if other in self.users:
            self.users[other]["display_name"] = named["display_name"]

    def _apply_to_people(self, kind: str, data: Json) -> None:
        user_id = data["user_id"]
        if kind in ("password_changed", "user_registered"):
            if user_id != self.me:
                raise Unexpected(f"{kind} of another")
            return
        profile = {"display_name": data["display_name"], "avatar_url": data.get("avatar_url")}
        if user_id in self.users:
            self.users[user_id] |= profile
        for chat in self.chats.values():
            chat.named(user_id, profile["display_name"])
            if chat.row["peer"] and chat.row["peer"]["id"] == user_id:
                chat.row["peer"] |= profile
            if kind == "account_deleted" and data["erase_messages"]:
                chat.erased(user_id)


def _changed(chat: Chat, frame: Json) -> bool:
    """What the event does to the chat; False if that takes a look at the chat."""
    data = frame["data"]
    match frame["type"]:
        case "message_sent" | "system_message_sent":
            return chat.sent(frame["position"], data)
        case "message_edited":
            chat.edited(data)
        case "message_deleted":
            return chat.deleted(data)
        case "reaction_added":
            chat.reacted(data, 1)
        case "reaction_removed":
            chat.reacted(data, -1)
        case "messages_delivered" | "messages_read":
            return chat.marked(data["marks"])
        case _:
            _changed_itself(chat, frame)
    return True


def _changed_itself(chat: Chat, frame: Json) -> None:
    data, row = frame["data"], chat.row
    match frame["type"]:
        case "group_updated":
            row |= {name: data[name] for name in ("name", "slug", "avatar_url")}
            row["updated_at"] = frame["at"]
        case "role_changed":
            if data["user_id"] == chat.me:
                row["my_role"] = data["role"]
        case "ownership_transferred":
            row |= {"owner_id": data["to_id"], "updated_at": frame["at"]}
            if chat.me in (data["to_id"], data["from_id"]):
                row["my_role"] = "owner" if data["to_id"] == chat.me else "member"
        case "members_added":
            if chat.members is not None:
                chat.members |= set(data["user_ids"])
        case "member_removed" | "member_left":
            if chat.members is not None:
                chat.members.discard(data["user_id"])
        case unknown:
            raise Unexpected(f"{unknown}: {frame}")


def _created(me: str, data: Json, at: str) -> Json:
    return {
        "id": data["chat_id"],
        "type": "group",
        "name": data["name"],
        "slug": data["slug"],
        "avatar_url": data["avatar_url"],
        "owner_id": data["owner_id"],
        "created_at": at,
        "updated_at": at,
        "last_message_at": None,
        "my_role": "owner" if data["owner_id"] == me else "member",
        "unread_count": 0,
        "last_message": None,
        "peer": None,
    }


def _message(position: int, seq: int, data: Json) -> Json:
    same = ("chat_id", "sender", "content", "content_type", "metadata", "reply_to", "created_at")
    return {
        "id": data["message_id"],
        "seq": seq,
        "position": position,
        **{name: deepcopy(data[name]) for name in same},
        "is_edited": False,
        "edited_at": None,
        "is_deleted": False,
        "deleted_at": None,
        "reactions": [],
        "attachments": data["attachments"],
    }


def _is_from(message: Json, user_id: str) -> bool:
    return bool(message["sender"] and message["sender"]["id"] == user_id)


def _last_active(chat: Json) -> tuple[datetime, str]:
    return _time(chat["last_message_at"] or chat["created_at"]), chat["id"]


def _made(contact: Json) -> tuple[datetime, str]:
    return _time(contact["created_at"] or NEVER), contact["user"]["id"]


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
