"""What the client knows: `begin` with a state, then `reduce` events, each once, in order.

Of the chat that is open all messages shown are kept; of the others, how many are unread. What is
counted by others is kept by name here (who reacted, who has read), so an event that a page read
meanwhile holds already changes nothing when it comes. What can't be counted from here, such as a
chat that is new to us, is `stale`: the client asks for it, and tells by `know`.

`reduce` says what is new, as lines. No I/O, no clock: times are the server's.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, tzinfo

from api.chat import wording
from api.chat.conversation import Conversation, Json, Message
from api.chat.wording import (
    DELETED,
    DELETED_USER,
    MAX_NAMED,
    REPLY_TO_DELETED,
    SOMEBODY,
    Line,
    Person,
    announced,
    failed,
    note,
)


@dataclass(kw_only=True)
class Chat:
    """`as_of` is the position from which on we count ourselves."""

    id: str
    title: str
    handle: str
    peer_id: str | None
    unread: int
    as_of: int
    active_at: str


class View:
    def __init__(self, user_id: str, zone: tzinfo | None = None) -> None:
        self.user_id = user_id
        self.position = 0
        self.people: dict[str, Person] = {}
        self.chats: dict[str, Chat] = {}
        self.stale: set[str] = set()
        self.open: Conversation | None = None
        self.waiting: dict[str, str] = {}
        self._zone = zone
        self._day: date | None = None

    # ----------------------------------------------------------------- what is asked for

    def begin(self, state: Json) -> None:
        """As of a position: what was known before is no more."""
        self.position = state["position"]
        self.chats.clear()
        self.stale.clear()
        for row in state["contacts"]:
            self.meet(row["user"])
        for row in state["chats"]:
            self.know(row, self.position)

    def know(self, row: Json, as_of: int) -> list[Line]:
        """A chat, as a query shows it."""
        is_new = row["id"] not in self.chats
        peer = row["peer"]
        if peer is not None:
            self.meet(peer)
        self.stale.discard(row["id"])
        is_open = self.open is not None and self.open.chat_id == row["id"]
        chat = self.chats[row["id"]] = Chat(
            id=row["id"],
            title=wording.one_line(row["name"] or ""),
            handle=peer["username"] if peer else row["slug"] or "",
            peer_id=peer["id"] if peer else None,
            unread=0 if is_open else row["unread_count"],
            as_of=as_of,
            active_at=row["last_message_at"] or row["created_at"],
        )
        return [note(f"new chat: {self.listed(chat)}")] if is_new else []

    def forget(self, chat_id: str) -> None:
        """We are not in it (any more)."""
        self.stale.discard(chat_id)
        self.chats.pop(chat_id, None)
        if self.open is not None and self.open.chat_id == chat_id:
            self.open = None

    def meet(self, user: Json) -> None:
        known = self.people.get(user["id"])
        name = wording.one_line(user["display_name"] or user.get("username") or SOMEBODY)
        status = user.get("status") or (known.status if known else "offline")
        username = user.get("username") or (known.username if known else "")
        self.people[user["id"]] = Person(name, username, status)

    def show(self, chat_id: str, members: Iterable[Json], messages: Iterable[Json]) -> list[Line]:
        """Opens a chat; `messages` oldest first, each with `reacted` and `recipients` in it.

        Of a chat that is open already, only what is new or different is said.
        """
        before = self.open if self.open and self.open.chat_id == chat_id else None
        conversation = Conversation(chat_id=chat_id, members=set())
        for member in members:
            self.meet(member["user"])
            conversation.members.add(member["user"]["id"])
        for row in messages:
            conversation.take(self._read(row))
        self.open = conversation
        self.chats[chat_id].unread = 0
        if before is None:
            self._day = None
            return [*self._said(conversation.messages.values())]
        conversation.marked = before.marked
        return self._since(before, conversation)

    def strangers(self, frame: Json) -> list[str]:
        """Who must be known by name before this event can be shown."""
        data = frame["data"]
        if self.open is None or frame["chat_id"] != self.open.chat_id:
            return []
        system = data.get("metadata", {}).get("system", {})
        named = [data.get("by"), data.get("user_id"), *wording.named_in(system)]
        named += data.get("user_ids", [])[:MAX_NAMED]
        return [one for one in dict.fromkeys(named) if one and one not in self.people]

    # ------------------------------------------------------------------------ what is said

    def title(self, chat: Chat) -> str:
        return self.name(chat.peer_id) if chat.peer_id else chat.title

    def listed(self, chat: Chat) -> str:
        unread = f", {chat.unread} unread" if chat.unread else ""
        return f"{self.title(chat)} ({chat.handle}){unread}"

    def person(self, user_id: str) -> Person:
        return self.people.get(user_id, Person(SOMEBODY, "", "offline"))

    def name(self, user_id: str | None) -> str:
        return self.person(user_id or "").name

    def by_activity(self) -> list[Chat]:
        return sorted(self.chats.values(), key=lambda chat: (chat.active_at, chat.id), reverse=True)

    def find(self, wanted: str, listed: list[str]) -> list[Chat]:
        """Those that may be meant: by handle first, then by name, then by number in a list."""
        folded = wanted.casefold()
        by_handle = [one for one in self.chats.values() if one.handle.casefold() == folded]
        by_name = [one for one in self.chats.values() if self.title(one).casefold() == folded]
        number = int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 10 else 0
        by_number = [
            self.chats[chat_id]
            for chat_id in listed[number - 1 : number]
            if number and chat_id in self.chats
        ]
        return by_handle or by_name or by_number

    def numbered(self, number: int) -> Message | None:
        return self.open.numbered(number) if self.open else None

    def line(self, message_id: str) -> Line | None:
        """As the message is now; None if it is not in the open chat."""
        message = self.open.messages.get(message_id) if self.open else None
        return self._line(message) if message else None

    def to_be_read(self) -> tuple[str, str] | None:
        """Chat and message up to which all is on the screen; None if that is known already."""
        if self.open is None:
            return None
        newest = self.open.newest_of_others(self.user_id)
        if newest is None or newest == self.open.marked:
            return None
        self.open.marked = newest
        return self.open.chat_id, newest

    def _line(self, message: Message) -> Line:
        name_of = self.name
        at = message.at.astimezone(self._zone)
        if message.system is not None:
            return wording.system(message.id, message.number, at, message.system, name_of)
        replied = self._replied(message)
        marks = list(message.standing.values()) if message.sender_id == self.user_id else None
        return wording.message(
            message.id,
            number=message.number,
            at=at,
            sender=name_of(message.sender_id),
            content=message.content,
            replied=replied,
            is_own=marks is not None,
            is_edited=message.is_edited and not message.is_deleted,
            reactions={emoji: len(who) for emoji, who in message.reactions.items()},
            mark="" if message.is_deleted or marks is None else wording.mark(marks),
        )

    def _replied(self, message: Message) -> str:
        quoted = message.reply_to
        if quoted is None:
            return ""
        known = self.open.messages.get(quoted["id"]) if self.open else None
        sender = quoted.get("sender") or {}
        number = f"#{known.number} " if known else ""
        return f"{number}{self.name(sender.get('id'))}: {wording.short(quoted['content'])}"

    def _said(self, messages: Iterable[Message]) -> list[Line]:
        """With a line where a day begins."""
        lines: list[Line] = []
        for message in messages:
            day = message.at.astimezone(self._zone).date()
            if day != self._day:
                self._day = day
                lines.append(wording.day(day))
            lines.append(self._line(message))
        return lines

    def _since(self, before: Conversation, now: Conversation) -> list[Line]:
        lines: list[Line] = []
        for message in now.messages.values():
            known = before.messages.get(message.id)
            if known is None and message.number > before.last_number:
                first = before.last_number + 1
                if message.number > first:
                    lines.append(note(f"#{first} to #{message.number - 1} are left out here"))
                before.last_number = message.number
                lines += self._said([message])
            elif known is not None:
                lines += self._changes(known, message)
        return lines

    def _changes(self, before: Message, now: Message) -> list[Line]:
        if now.is_deleted and not before.is_deleted:
            return [announced(f"#{now.number} was deleted")]
        if now.content != before.content:
            return [announced(f"#{now.number} was edited: {wording.shown(now.content)}")]
        return []

    # -------------------------------------------------------------------------- messages

    def _read(self, row: Json) -> Message:
        """A message, as a query shows it."""
        sender = row["sender"]
        if sender is not None:
            self._hear_of(sender)
        if row["reply_to"] and row["reply_to"]["sender"]:
            self._hear_of(row["reply_to"]["sender"])
        return Message(
            id=row["id"],
            number=row["seq"],
            position=row["position"],
            at=datetime.fromisoformat(row["created_at"]),
            sender_id=sender and sender["id"],
            content=row["content"],
            system=row["metadata"].get("system"),
            reply_to=row["reply_to"],
            is_edited=row["is_edited"],
            is_deleted=row["is_deleted"],
            reactions={one["emoji"]: dict.fromkeys(one["user_ids"]) for one in row["reacted"]},
            standing={
                one["user_id"]: "sent" if one["status"] == "pending" else one["status"]
                for one in row["recipients"]
            },
        )

    def _hear_of(self, sender: Json) -> None:
        """Of a sender only the name is told: what else is known stays."""
        if sender["display_name"] is not None:
            self.meet(sender)

    def _in_open(self, data: Json) -> Message | None:
        if self.open is None or data["chat_id"] != self.open.chat_id:
            return None
        return self.open.messages.get(data["message_id"])

    # ----------------------------------------------------------------------------- events

    def reduce(self, frame: Json) -> list[Line]:
        """What an event changes here, and what there is to say about it."""
        position = frame["position"]
        if position <= self.position:
            return []
        self.position = position
        data = frame["data"]
        match frame["type"]:
            case "message_sent" | "system_message_sent":
                return self._sent(frame, data)
            case "message_edited":
                return self._edited(data)
            case "message_deleted":
                return self._deleted(data)
            case "reaction_added" | "reaction_removed":
                return self._reacted(data, is_added=frame["type"] == "reaction_added")
            case "messages_delivered" | "messages_read":
                return self._marked(data)
            case "profile_updated" | "account_deleted":
                return self._renamed(data)
            case kind if kind.startswith("contact_"):
                return self._contact(kind, data)
            case kind:
                return self._chat_event(kind, data)

    def _sent(self, frame: Json, data: Json) -> list[Line]:
        self.waiting.pop(data["message_id"], None)
        chat = self.chats.get(data["chat_id"])
        if chat is None:
            self.stale.add(data["chat_id"])
            return []
        chat.active_at = data["created_at"]
        if data["sender"] is not None:
            self._hear_of(data["sender"])
        if self.open is None or self.open.chat_id != chat.id:
            return self._sent_elsewhere(chat, frame["position"], data)
        if data["message_id"] in self.open.messages:
            return []
        if data["reply_to"] and data["reply_to"]["sender"]:
            self._hear_of(data["reply_to"]["sender"])
        message = self._heard(self.open, frame["position"], data)
        self.open.take(message)
        return self._said([message])

    def _heard(self, conversation: Conversation, position: int, data: Json) -> Message:
        """A message, as the stream tells it: whoever is in the chat now is to get it."""
        sender_id = data["sender_id"]
        recipients = sorted(conversation.members - {sender_id}) if sender_id else []
        return Message(
            id=data["message_id"],
            number=conversation.last_number + 1,
            position=position,
            at=datetime.fromisoformat(data["created_at"]),
            sender_id=sender_id,
            content=data["content"],
            system=data["metadata"].get("system"),
            reply_to=data["reply_to"],
            standing=dict.fromkeys(recipients, "sent") if sender_id == self.user_id else {},
        )

    def _sent_elsewhere(self, chat: Chat, position: int, data: Json) -> list[Line]:
        sender_id = data["sender_id"]
        if sender_id in (None, self.user_id):
            return []
        if position > chat.as_of:
            chat.unread += 1
        said = wording.short(data["content"])
        return [note(f"{self.listed(chat)}: {self.name(sender_id)}: {said}")]

    def _edited(self, data: Json) -> list[Line]:
        if self.open is not None:
            self.open.requote(data["message_id"], data["content"])
        message = self._in_open(data)
        if message is None or message.is_deleted:
            return []
        message.content, message.is_edited = data["content"], True
        said = wording.shown(message.content)
        return [announced(f"#{message.number} {self.name(message.sender_id)} edited: {said}")]

    def _deleted(self, data: Json) -> list[Line]:
        if self.open is not None:
            self.open.requote(data["message_id"], REPLY_TO_DELETED)
        chat = self.chats.get(data["chat_id"])
        message = self._in_open(data)
        if message is None:
            if chat is not None and chat.unread:
                self.stale.add(chat.id)
            return []
        if message.is_deleted:
            return []
        message.content, message.is_deleted = DELETED, True
        message.reactions.clear()
        return [announced(f"#{message.number} was deleted by {self.name(data['by'])}")]

    def _reacted(self, data: Json, *, is_added: bool) -> list[Line]:
        message = self._in_open(data)
        if message is None or message.is_deleted:
            return []
        emoji, user_id = data["emoji"], data["user_id"]
        who = message.reactions.setdefault(emoji, {})
        changes = (user_id in who) != is_added
        if is_added:
            who[user_id] = None
        else:
            who.pop(user_id, None)
        if not who:
            del message.reactions[emoji]
        verb = "reacts" if is_added else "takes back"
        said = f"#{message.number} {self.name(user_id)} {verb} {wording.one_line(emoji)}"
        return [announced(said)] if changes else []

    def _marked(self, data: Json) -> list[Line]:
        numbers: dict[str, list[int]] = {}
        for mark in data["marks"]:
            self._mark_own(data["chat_id"], mark)
        if self.open is None or self.open.chat_id != data["chat_id"]:
            return []
        for message in self.open.messages.values():
            before = wording.mark(message.standing.values())
            for mark in data["marks"]:
                message.mark(mark)
            after = wording.mark(message.standing.values())
            if after != before and not message.is_deleted:
                numbers.setdefault(after, []).append(message.number)
        return [announced(f"{wording.numbers(found)} {said}") for said, found in numbers.items()]

    def _mark_own(self, chat_id: str, mark: Json) -> None:
        """What we read elsewhere is not unread any more; how much that is, is not told."""
        chat = self.chats.get(chat_id)
        is_open = self.open is not None and self.open.chat_id == chat_id
        if mark["user_id"] == self.user_id and chat and chat.unread and not is_open:
            self.stale.add(chat_id)

    def _renamed(self, data: Json) -> list[Line]:
        user_id = data["user_id"]
        before = self.people.get(user_id)
        name = wording.one_line(data["display_name"] or DELETED_USER)
        if before is None or before.name == name:
            return []
        self.people[user_id] = before._replace(name=name)
        if data.get("erase_messages") and self.open is not None:
            self.open.erase(user_id)
        return [note(f"{before.name} is called {name} now")]

    def _contact(self, kind: str, data: Json) -> list[Line]:
        row = data["contact"]
        if row is not None:
            self._hear_of(row["user"])
        other = data["contact_id"] if data["user_id"] == self.user_id else data["user_id"]
        said = wording.contact(kind, self.name(other), is_mine=data["user_id"] == self.user_id)
        return [note(said)] if said else []

    def _chat_event(self, kind: str, data: Json) -> list[Line]:
        chat_id: str = data.get("chat_id", "")
        match kind:
            case "direct_chat_opened" | "group_created":
                self.stale.add(chat_id)
            case "group_updated" if chat_id in self.chats:
                chat = self.chats[chat_id]
                chat.title, chat.handle = wording.one_line(data["name"]), data["slug"]
            case "group_deleted":
                return self._left(chat_id, "was deleted")
            case "members_added":
                self._joined(chat_id, data["user_ids"])
            case "member_removed" | "member_left":
                return self._gone(chat_id, data["user_id"])
            case _:
                pass
        return []

    def _joined(self, chat_id: str, user_ids: list[str]) -> None:
        if self.user_id in user_ids:
            self.stale.add(chat_id)
        if self.open is not None and self.open.chat_id == chat_id:
            self.open.members |= set(user_ids)

    def _gone(self, chat_id: str, user_id: str) -> list[Line]:
        if user_id == self.user_id:
            return self._left(chat_id, "is without you from now on")
        if self.open is not None and self.open.chat_id == chat_id:
            self.open.members.discard(user_id)
        return []

    def _left(self, chat_id: str, what: str) -> list[Line]:
        chat = self.chats.get(chat_id)
        self.forget(chat_id)
        return [note(f"{self.title(chat)} {what}")] if chat else []

    # ------------------------------------------------------------------ what has no position

    def presence(self, frame: Json) -> list[Line]:
        user_id, status = frame["user_id"], frame["status"]
        known = self.people.get(user_id)
        if known is None or known.status == status:
            return []
        self.people[user_id] = known._replace(status=status)
        is_here = self.open is not None and user_id in self.open.members
        return [announced(f"{known.name} is {status}")] if is_here else []

    def typing(self, frame: Json) -> str | None:
        """Who it is, if it is in the open chat."""
        is_here = self.open is not None and self.open.chat_id == frame["chat_id"]
        return frame["user_id"] if is_here else None

    def present(self) -> list[Line]:
        """Who is in the open chat, and whether they are there."""
        if self.open is None:
            return [failed("no chat is open: /open CHAT")]
        members = sorted(self.open.members, key=lambda one: (self.name(one).casefold(), one))
        return [
            note(f"{self.name(one)}: you")
            if one == self.user_id
            else note(wording.person(self.person(one)))
            for one in members
        ]
