"""A plain messenger: dicts and rules, written from data-model.md and contract.md.

It shares no code with the product and knows no events: `Messenger.execute` carries out one
command at once or says why not, and the views say what each user then sees, in the API's
own shapes. What only a server can know (ids it made, positions) comes in as `chosen`.
Ids are compared as text. Times are compared as there or not there.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

Json = dict[str, Any]

DELETED = "[Deleted]"
DELETED_REPLY = "[Message Deleted]"
DELETED_USER = "[Deleted User]"
TIME = "a time"
MAX_PARTICIPANTS = 300
MAX_REACTIONS = 10
EMOJI = ("👍", "🎉", ":wave:", *(f":shortcode_{n}:" for n in range(12)))
SENTENCES = {
    "members_added": "joined the group",
    "member_removed": "was removed from the group",
    "member_left": "left the group",
    "group_renamed": "renamed the group",
    "ownership_transferred": "owns the group now",
    "admin_appointed": "is an admin now",
    "admin_dismissed": "is no admin any more",
}


class Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(status, code)
        self.status = status
        self.code = code


class Outcome(NamedTuple):
    """`position` is set where it must be that of an earlier command's."""

    status: int = 200
    code: str | None = None
    answer: Json = {}  # noqa: RUF012 - nobody writes to it
    is_changed: bool = False
    position: int | None = None
    is_replayed: bool = False


IDLE = Outcome()
DONE = Outcome(is_changed=True)


def done(**answer: Any) -> Outcome:
    return Outcome(answer=answer, is_changed=True)


def idle(**answer: Any) -> Outcome:
    return Outcome(answer=answer)


class Messenger:
    """All there is, in plain dicts; deep copies of it are worlds of their own."""

    def __init__(self) -> None:
        self.users: dict[str, Json] = {}
        self.pairs: dict[tuple[str, ...], Json] = {}
        self.chats: dict[str, Json] = {}
        self.messages: dict[str, Json] = {}
        self.keys: dict[tuple[str, str], Json] = {}
        self.told = 0

    def execute(
        self, actor: str | None, name: str, data: Json, key: str | None, chosen: Json
    ) -> Outcome:
        if actor is not None and self.users[actor]["is_deleted"]:
            return Outcome(401, "unauthenticated")
        known = self.keys.get((actor or "", key)) if key else None
        if known is not None:
            return self._replayed(known, name, data)
        try:
            outcome: Outcome = getattr(self, "_" + name.replace("-", "_"))(actor, data, chosen)
        except Refused as refused:
            return Outcome(refused.status, refused.code)
        if key:
            first = chosen.get("position") if outcome.position is None else outcome.position
            self.keys[actor or "", key] = {
                "name": name,
                "data": data,
                "outcome": outcome._replace(is_changed=False, position=first, is_replayed=True),
            }
        return outcome

    def _replayed(self, known: Json, name: str, data: Json) -> Outcome:
        if (known["name"], known["data"]) != (name, data):
            return Outcome(422, "idempotency-key-reused")
        outcome: Outcome = known["outcome"]
        return outcome

    # ------------------------------------------------------------------------------ users

    def _register_user(self, actor: str | None, data: Json, chosen: Json) -> Outcome:
        user_id = data.get("user_id") or chosen.get("user_id", "?")
        shown = data.get("display_name") or data["username"]
        first = (data["username"], shown, data["password"])
        if user_id in self.users:
            user = self.users[user_id]
            if user["is_deleted"] or user["first"] != first:
                raise Refused(409, "conflict")
            return Outcome(answer={"user_id": user_id}, position=user["position"])
        # A deleted account's name stays taken.
        if any(user["first"][0] == data["username"] for user in self.users.values()):
            raise Refused(409, "username-taken")
        self.users[user_id] = {
            "id": user_id,
            "username": data["username"],
            "display_name": shown,
            "avatar_url": None,
            "status": "offline",
            "last_seen": None,
            "password": data["password"],
            "first": first,
            "position": chosen.get("position"),
            "is_deleted": False,
        }
        return done(user_id=user_id)

    def _update_profile(self, actor: str, data: Json, chosen: Json) -> Outcome:
        user = self.users[actor]
        new = {
            "display_name": data.get("display_name", user["display_name"]) or user["username"],
            "avatar_url": data.get("avatar_url", user["avatar_url"]),
        }
        return self._changed(user, new)

    def _change_password(self, actor: str, data: Json, chosen: Json) -> Outcome:
        if data["current_password"] != self.users[actor]["password"]:
            raise Refused(403, "wrong-credentials")
        return self._changed(self.users[actor], {"password": data["new_password"]})

    def _set_status(self, actor: str, data: Json, chosen: Json) -> Outcome:
        outcome = self._changed(self.users[actor], {"status": data["status"]})
        if outcome.is_changed:
            self.users[actor]["last_seen"] = TIME
        return outcome

    def _changed(self, thing: Json, new: Json) -> Outcome:
        if all(thing[name] == value for name, value in new.items()):
            return IDLE
        thing.update(new)
        return DONE

    def _delete_account(self, actor: str, data: Json, chosen: Json) -> Outcome:
        """The end at once; what follows (`settle_groups`, `settle_contacts`) may take a moment
        in which others act."""
        user = self.users[actor]
        if data["password"] != user["password"]:
            raise Refused(403, "wrong-credentials")
        for message in self.messages.values():
            message["unread"].discard(actor)
            if data.get("erase_messages") and message["sender"] == actor:
                message.update(content=DELETED, formatting={})
        user.update(
            username="deleted_" + actor.replace("-", ""),
            display_name=DELETED_USER,
            avatar_url=None,
            status="offline",
            last_seen=None,
            is_deleted=True,
        )
        return DONE

    def settle_groups(self, actor: str) -> None:
        for chat_id in self.chats_of(actor):
            if self.chats[chat_id]["type"] == "group":
                self._depart(actor, self.chats[chat_id])

    def settle_contacts(self, actor: str) -> None:
        self.pairs = {pair: way for pair, way in self.pairs.items() if actor not in pair}

    # --------------------------------------------------------------------------- contacts

    def _between(self, one: str, other: str) -> Json:
        pair = tuple(sorted((one, other)))
        return self.pairs.get(pair) or {"by": None, "is_accepted": False, "blocks": frozenset()}

    def _stand(self, one: str, other: str, **new: Any) -> Outcome:
        pair = tuple(sorted((one, other)))
        self.pairs[pair] = self._between(one, other) | new
        return DONE

    def _other(self, actor: str, data: Json) -> str:
        other: str = data["user_id"]
        if other == actor:
            raise Refused(400, "invalid")
        self._known([other])
        return other

    def _known(self, user_ids: Iterable[str]) -> None:
        for user_id in user_ids:
            if user_id not in self.users or self.users[user_id]["is_deleted"]:
                raise Refused(404, "not-found")

    def _request_contact(self, actor: str, data: Json, chosen: Json) -> Outcome:
        other = self._other(actor, data)
        way = self._between(actor, other)
        if way["blocks"]:
            raise Refused(403, "blocked")
        if way["is_accepted"] or way["by"] == actor:
            return IDLE
        if way["by"] == other:
            return self._stand(actor, other, is_accepted=True)
        return self._stand(actor, other, by=actor)

    def _accept_contact(self, actor: str, data: Json, chosen: Json) -> Outcome:
        other = self._other(actor, data)
        way = self._between(actor, other)
        if actor in way["blocks"]:
            raise Refused(403, "blocked")
        if way["is_accepted"]:
            return IDLE
        if way["by"] is None:
            raise Refused(404, "not-found")
        if way["by"] == actor:
            raise Refused(403, "forbidden")
        return self._stand(actor, other, is_accepted=True)

    def _remove_contact(self, actor: str, data: Json, chosen: Json) -> Outcome:
        other = self._other(actor, data)
        if self._between(actor, other)["by"] is None:
            return IDLE
        return self._stand(actor, other, by=None, is_accepted=False)

    def _block_contact(self, actor: str, data: Json, chosen: Json) -> Outcome:
        other = self._other(actor, data)
        blocks = self._between(actor, other)["blocks"]
        return IDLE if actor in blocks else self._stand(actor, other, blocks=blocks | {actor})

    def _unblock_contact(self, actor: str, data: Json, chosen: Json) -> Outcome:
        other = self._other(actor, data)
        blocks = self._between(actor, other)["blocks"]
        return IDLE if actor not in blocks else self._stand(actor, other, blocks=blocks - {actor})

    def _check_contacts(self, one: str, other: str) -> None:
        way = self._between(one, other)
        if way["blocks"]:
            raise Refused(403, "blocked")
        if not way["is_accepted"]:
            raise Refused(403, "not-contacts")

    # ------------------------------------------------------------------------------ chats

    def _open_direct_chat(self, actor: str, data: Json, chosen: Json) -> Outcome:
        other = data["user_id"]
        if other == actor:
            raise Refused(400, "invalid")
        pair = sorted((actor, other))
        slug = "direct-" + "-".join(pair)
        for chat_id, chat in self.chats.items():
            if chat["slug"] == slug:
                return idle(chat_id=chat_id, created=False)
        self._known([other])
        if not self._between(actor, other)["is_accepted"]:
            raise Refused(403, "not-contacts")
        self._check_contacts(actor, other)
        chat_id = chosen.get("chat_id", "?")
        self._begin(chat_id, "direct", slug, dict.fromkeys(pair, "member"))
        return done(chat_id=chat_id, created=True)

    def _begin(self, chat_id: str, kind: str, slug: str, roles: Json, **more: Any) -> None:
        self.chats[chat_id] = {
            "id": chat_id,
            "type": kind,
            "name": None,
            "slug": slug,
            "avatar_url": None,
            "owner_id": None,
            "roles": roles,
            "line": list(roles),
            "messages": [],
            "marks": {},
            "is_deleted": False,
            "first": None,
        } | more

    def _create_group(self, actor: str, data: Json, chosen: Json) -> Outcome:
        self._check_slug(data.get("slug"))
        others = [user for user in dict.fromkeys(data["member_ids"]) if user != actor]
        if not others:
            raise Refused(400, "invalid")
        chat_id = data.get("chat_id") or chosen.get("chat_id", "?")
        if chat_id[14:15] == "8":  # The version of ids that are kept for direct chats.
            raise Refused(400, "invalid")
        first = {
            "owner": actor,
            "others": set(others),
            "name": data["name"],
            "avatar_url": data.get("avatar_url"),
            "given_slug": data.get("slug"),
        }
        if chat_id in self.chats:
            return self._created_again(self.chats[chat_id], first)
        self._check_addable(actor, others)
        slug = data.get("slug") or chosen.get("slug", "?")
        self._check_slug_free(slug)
        self._begin(
            chat_id,
            "group",
            slug,
            {actor: "owner", **dict.fromkeys(others, "member")},
            name=data["name"],
            avatar_url=data.get("avatar_url"),
            owner_id=actor,
            first=first | {"slug": slug, "position": chosen.get("position")},
        )
        return done(chat_id=chat_id, slug=slug)

    def _created_again(self, chat: Json, asked: Json) -> Outcome:
        first = chat["first"]
        if first is None or any(first[name] != value for name, value in asked.items()):
            raise Refused(409, "conflict")
        answer = {"chat_id": chat["id"], "slug": first["slug"]}
        return Outcome(answer=answer, position=first["position"])

    def _check_slug(self, slug: str | None) -> None:
        if slug is not None and slug.lower().startswith("direct-"):
            raise Refused(400, "invalid")

    def _check_slug_free(self, slug: str) -> None:
        for chat in self.chats.values():
            if chat["slug"].lower() == slug.lower() and not chat["is_deleted"]:
                raise Refused(409, "slug-taken")

    def _check_addable(self, actor: str, others: list[str]) -> None:
        self._known(others)
        if any(other in self._between(actor, other)["blocks"] for other in others):
            raise Refused(403, "blocked")

    def _chat(self, actor: str, chat_id: str) -> Json:
        """Only who is in a chat knows of it."""
        chat = self.chats.get(chat_id)
        if chat is None or chat["is_deleted"] or actor not in chat["roles"]:
            raise Refused(404, "not-found")
        return chat

    def _group(self, actor: str, data: Json, *roles: str) -> Json:
        chat = self._chat(actor, data["chat_id"])
        if chat["type"] == "direct" or (roles and chat["roles"][actor] not in roles):
            raise Refused(403, "forbidden")
        return chat

    def _tell(self, chat: Json, kind: str, actor: str, user_ids: list[str], **more: str) -> None:
        """A system message; its id is told later, by whoever has seen it (`learn_id`)."""
        self.told += 1
        system = {"kind": kind, "actor_id": actor, "user_ids": user_ids, **more}
        self._say(f"told {self.told}", chat, None, SENTENCES[kind], system=system)

    def _say(
        self, message_id: str, chat: Json, sender: str | None, content: str, **more: Any
    ) -> None:
        recipients = [user for user in chat["roles"] if sender is not None and user != sender]
        chat["messages"].append(message_id)
        self.messages[message_id] = {
            "id": message_id,
            "chat_id": chat["id"],
            "seq": len(chat["messages"]),
            "sender": sender,
            "content": content,
            "formatting": {},
            "reply_to": None,
            "system": None,
            "is_edited": False,
            "is_deleted": False,
            "reactions": [],
            "delivery": dict.fromkeys(recipients, "pending"),
            "unread": set(recipients),
        } | more

    def _update_group(self, actor: str, data: Json, chosen: Json) -> Outcome:
        chat = self._group(actor, data, "owner", "admin")
        new: Json = {name: data.get(name, chat[name]) for name in ("name", "slug", "avatar_url")}
        if all(chat[name] == value for name, value in new.items()):
            return idle(slug=chat["slug"])
        if new["slug"].lower() != chat["slug"].lower():
            self._check_slug(new["slug"])
            self._check_slug_free(new["slug"])
        is_renamed = new["name"] != chat["name"]
        chat.update(new)
        if is_renamed:
            self._tell(chat, "group_renamed", actor, [], name=chat["name"])
        return done(slug=chat["slug"])

    def _delete_group(self, actor: str, data: Json, chosen: Json) -> Outcome:
        self._end(self._group(actor, data, "owner"))
        return DONE

    def _end(self, chat: Json) -> None:
        chat["is_deleted"] = True
        for message_id in chat["messages"]:
            self.messages[message_id]["unread"].clear()

    def _add_members(self, actor: str, data: Json, chosen: Json) -> Outcome:
        chat = self._group(actor, data, "owner", "admin")
        added = [user for user in dict.fromkeys(data["user_ids"]) if user not in chat["roles"]]
        if not added:
            return idle(added=[])
        self._check_addable(actor, added)
        if len(chat["roles"]) + len(added) > MAX_PARTICIPANTS:
            raise Refused(409, "conflict")
        chat["roles"].update(dict.fromkeys(added, "member"))
        # Who comes back takes up the row they had, and their place in line.
        chat["line"] += [user for user in added if user not in chat["line"]]
        self._tell(chat, "members_added", actor, added)
        return done(added=added)

    def _remove_member(self, actor: str, data: Json, chosen: Json) -> Outcome:
        chat, user = self._group(actor, data, "owner", "admin"), data["user_id"]
        if user == actor:
            raise Refused(400, "invalid")
        if user not in chat["line"]:
            raise Refused(404, "not-found")
        if user not in chat["roles"]:
            return IDLE
        if chat["roles"][actor] == "admin" and chat["roles"][user] != "member":
            raise Refused(403, "forbidden")
        self._go(user, chat)
        self._tell(chat, "member_removed", actor, [user])
        return DONE

    def _go(self, user: str, chat: Json) -> None:
        del chat["roles"][user]
        for message_id in chat["messages"]:
            self.messages[message_id]["unread"].discard(user)

    def _leave_group(self, actor: str, data: Json, chosen: Json) -> Outcome:
        return done(new_owner_id=self._depart(actor, self._group(actor, data)))

    def _depart(self, user: str, chat: Json) -> str | None:
        """The new owner, if it takes one."""
        was = chat["roles"][user]
        self._go(user, chat)
        self._tell(chat, "member_left", user, [user])
        if was != "owner":
            return None
        left = [other for other in chat["line"] if other in chat["roles"]]
        if not left:
            self._end(chat)
            return None
        heir: str = next((other for other in left if chat["roles"][other] == "admin"), left[0])
        self._own(chat, heir)
        self._tell(chat, "ownership_transferred", user, [heir])
        return heir

    def _own(self, chat: Json, heir: str) -> None:
        chat["owner_id"] = heir
        chat["roles"][heir] = "owner"

    def _change_role(self, actor: str, data: Json, chosen: Json) -> Outcome:
        chat, user = self._group(actor, data, "owner"), data["user_id"]
        if user not in chat["roles"]:
            raise Refused(404, "not-found")
        if user == actor:
            raise Refused(400, "invalid")
        if chat["roles"][user] == data["role"]:
            return IDLE
        chat["roles"][user] = data["role"]
        kind = "admin_appointed" if data["role"] == "admin" else "admin_dismissed"
        self._tell(chat, kind, actor, [user])
        return DONE

    def _transfer_ownership(self, actor: str, data: Json, chosen: Json) -> Outcome:
        chat, heir = self._group(actor, data, "owner"), data["user_id"]
        if heir not in chat["roles"]:
            raise Refused(404, "not-found")
        if heir == actor:
            return IDLE
        self._own(chat, heir)
        chat["roles"][actor] = "admin"
        self._tell(chat, "ownership_transferred", actor, [heir])
        return DONE

    # --------------------------------------------------------------------------- messages

    def _check_may_send(self, actor: str, chat: Json) -> None:
        if chat["type"] == "direct":
            peer = next(user for user in chat["roles"] if user != actor)
            if self.users[peer]["is_deleted"]:
                raise Refused(403, "not-contacts")
            self._check_contacts(actor, peer)

    def _send_message(self, actor: str, data: Json, chosen: Json) -> Outcome:
        attachments = data.get("attachment_ids") or []
        _check_whole(data, attachments)
        formatting = _formatting(data)
        said = (actor, data["chat_id"], data["content"], formatting, data.get("reply_to_id"))
        message_id = data.get("message_id") or chosen.get("message_id", "?")
        first = self.messages.get(message_id)
        if first is not None and first.get("said") == said and not attachments:
            return Outcome(answer={"message_id": message_id}, position=first["position"])
        chat = self._chat(actor, data["chat_id"])
        if first is not None:
            raise Refused(409, "conflict")
        self._check_may_send(actor, chat)
        target = data.get("reply_to_id")
        if target is not None and target not in chat["messages"]:
            raise Refused(404, "not-found")
        if attachments:  # nobody uploads here: whichever is named is not there
            raise Refused(404, "not-found")
        more = {"formatting": formatting, "reply_to": target, "said": said}
        position = chosen.get("position")
        self._say(message_id, chat, actor, data["content"], position=position, **more)
        self.users[actor]["last_seen"] = TIME
        return done(message_id=message_id)

    def _message(self, actor: str, data: Json) -> tuple[Json, Json]:
        message = self.messages.get(data["message_id"])
        if message is None:
            raise Refused(404, "not-found")
        return message, self._chat(actor, message["chat_id"])

    def _edit_message(self, actor: str, data: Json, chosen: Json) -> Outcome:
        new = {"content": data["content"], "formatting": _formatting(data)}
        message, chat = self._message(actor, data)
        if message["sender"] != actor:
            raise Refused(403, "forbidden")
        if message["is_deleted"]:
            raise Refused(409, "conflict")
        self._check_may_send(actor, chat)
        if not data["content"]:
            raise Refused(400, "invalid")
        outcome = self._changed(message, new)
        message["is_edited"] |= outcome.is_changed
        return outcome

    def _delete_message(self, actor: str, data: Json, chosen: Json) -> Outcome:
        message, chat = self._message(actor, data)
        if message["sender"] is None:
            raise Refused(403, "forbidden")
        if message["sender"] != actor and chat["roles"][actor] == "member":
            raise Refused(403, "forbidden")
        message["unread"].clear()
        message["reactions"].clear()
        return self._changed(message, {"is_deleted": True, "content": DELETED, "formatting": {}})

    def _add_reaction(self, actor: str, data: Json, chosen: Json) -> Outcome:
        reaction = (actor, _emoji(data))
        message, chat = self._message(actor, data)
        if message["sender"] is None:
            raise Refused(403, "forbidden")
        if message["is_deleted"]:
            raise Refused(409, "conflict")
        self._check_may_send(actor, chat)
        if reaction in message["reactions"]:
            return IDLE
        if sum(user == actor for user, _ in message["reactions"]) == MAX_REACTIONS:
            raise Refused(409, "conflict")
        message["reactions"].append(reaction)
        return DONE

    def _remove_reaction(self, actor: str, data: Json, chosen: Json) -> Outcome:
        reaction = (actor, _emoji(data))
        message, _ = self._message(actor, data)
        if reaction not in message["reactions"]:
            return IDLE
        message["reactions"].remove(reaction)
        return DONE

    def _mark_delivered(self, actor: str, data: Json, chosen: Json) -> Outcome:
        chat = self._chat(actor, data["chat_id"])
        up_to = self._marked(chat, data["up_to_message_id"])
        return self._mark(actor, chat, delivered=up_to)

    def _mark_read(self, actor: str, data: Json, chosen: Json) -> Outcome:
        chat = self._chat(actor, data["chat_id"])
        named = data.get("up_to_message_id")
        up_to = self._newest(actor, chat) if named is None else self._marked(chat, named)
        outcome = self._mark(actor, chat, delivered=up_to, read=up_to)
        if outcome.is_changed:
            self.users[actor]["last_seen"] = TIME
        return outcome

    def _marked(self, chat: Json, message_id: str) -> int:
        if message_id not in chat["messages"]:
            raise Refused(404, "not-found")
        seq: int = self.messages[message_id]["seq"]
        return seq

    def _newest(self, actor: str, chat: Json) -> int:
        """Of those that can be unread: others' own."""
        seqs = (
            self.messages[one]["seq"]
            for one in chat["messages"]
            if self.messages[one]["sender"] not in (None, actor)
        )
        return max(seqs, default=0)

    def _mark(self, actor: str, chat: Json, *, delivered: int, read: int = 0) -> Outcome:
        marks = chat["marks"].get(actor, (0, 0))
        if (delivered if read == 0 else read) <= marks[read > 0]:
            return IDLE
        chat["marks"][actor] = (max(delivered, marks[0]), max(read, marks[1]))
        for message_id in chat["messages"]:
            self._receive(self.messages[message_id], actor, delivered, read)
        return DONE

    def _receive(self, message: Json, user: str, delivered: int, read: int) -> None:
        if user not in message["delivery"] or message["delivery"][user] == "read":
            return
        if message["seq"] <= read:
            message["delivery"][user] = "read"
            message["unread"].discard(user)
        elif message["seq"] <= delivered:
            message["delivery"][user] = "delivered"

    # ------------------------------------------------------------------------------ views

    def user_view(self, viewer: str, user_id: str) -> Json:
        """Who is blocked by somebody sees nothing of their comings and goings."""
        names = ("id", "username", "display_name", "avatar_url", "status", "last_seen")
        view = {name: self.users[user_id][name] for name in names} | {"created_at": TIME}
        if user_id in self._between(viewer, user_id)["blocks"]:
            view.update(status="offline", last_seen=None)
        return view

    def contacts_view(self, user_id: str) -> Json:
        rows = []
        for pair, way in self.pairs.items():
            if user_id not in pair or (way["by"] is None and user_id not in way["blocks"]):
                continue
            between = "accepted" if way["is_accepted"] else "pending"
            rows.append(
                {
                    "user": self.user_view(user_id, next(one for one in pair if one != user_id)),
                    "status": "blocked" if user_id in way["blocks"] else between,
                    "requested_by": way["by"] or user_id,
                    "created_at": TIME,
                    "accepted_at": TIME if way["is_accepted"] else None,
                }
            )
        return {"items": rows}

    def chats_of(self, user_id: str) -> list[str]:
        return [
            chat_id
            for chat_id, chat in self.chats.items()
            if user_id in chat["roles"] and not chat["is_deleted"]
        ]

    def chat_view(self, user_id: str, chat_id: str) -> Json:
        chat = self.chats[chat_id]
        last = chat["messages"][-1:]
        peers = [user for user in chat["roles"] if chat["type"] == "direct" and user != user_id]
        return {
            **{
                name: chat[name]
                for name in ("id", "type", "name", "slug", "avatar_url", "owner_id")
            },
            "created_at": TIME,
            "updated_at": TIME,
            "last_message_at": TIME if last else None,
            "my_role": chat["roles"][user_id],
            "unread_count": self.unread_count(user_id, chat_id),
            "last_message": self.message_view(user_id, last[0]) if last else None,
            "peer": self.user_view(user_id, peers[0]) if peers else None,
        }

    def unread_count(self, user_id: str, chat_id: str) -> int:
        messages = self.chats[chat_id]["messages"]
        return sum(user_id in self.messages[message_id]["unread"] for message_id in messages)

    def unread_view(self, user_id: str) -> Json:
        counts = {
            chat_id: self.unread_count(user_id, chat_id) for chat_id in self.chats_of(user_id)
        }
        items = [{"chat_id": chat_id, "count": count} for chat_id, count in counts.items() if count]
        return {"chats": len(items), "messages": sum(counts.values()), "items": items}

    def participants_view(self, viewer: str, chat_id: str) -> Json:
        items = [
            {"user": self.user_view(viewer, user_id), "role": role, "joined_at": TIME}
            for user_id, role in self.chats[chat_id]["roles"].items()
        ]
        return {"items": items}

    def messages_of(self, user_id: str, chat_id: str) -> list[Json]:
        messages = self.chats[chat_id]["messages"]
        return [self.message_view(user_id, message_id) for message_id in messages]

    def message_view(self, user_id: str, message_id: str) -> Json:
        message = self.messages[message_id]
        view = {name: message[name] for name in ("id", "chat_id", "seq", "is_edited", "is_deleted")}
        return view | {
            "sender": self._sender_view(message["sender"]),
            "content": message["content"],
            "content_type": "system" if message["system"] else "text",
            "metadata": _metadata(message),
            "reply_to": self._reply_view(message["reply_to"]),
            "edited_at": TIME if message["is_edited"] else None,
            "deleted_at": TIME if message["is_deleted"] else None,
            "created_at": TIME,
            "reactions": [
                {"emoji": item["emoji"], "count": item["count"], "me": user_id in item["user_ids"]}
                for item in self.reactions_view(message_id)
            ],
            "attachments": [],
            **({"delivery": self._counts(message)} if message["sender"] == user_id else {}),
        }

    def _sender_view(self, user_id: str | None) -> Json | None:
        if user_id is None:
            return None
        return {"id": user_id, "display_name": self.users[user_id]["display_name"]}

    def _reply_view(self, message_id: str | None) -> Json | None:
        if message_id is None:
            return None
        message = self.messages[message_id]
        shown = DELETED_REPLY if message["is_deleted"] else message["content"]
        return {"id": message_id, "sender": self._sender_view(message["sender"]), "content": shown}

    def _counts(self, message: Json) -> Json:
        statuses = list(message["delivery"].values())
        return {
            "recipients": len(statuses),
            "delivered": len(statuses) - statuses.count("pending"),
            "read": statuses.count("read"),
        }

    def delivery_view(self, message_id: str) -> Json:
        message = self.messages[message_id]
        items = [
            {
                "user_id": user_id,
                "status": status,
                "delivered_at": None if status == "pending" else TIME,
                "read_at": TIME if status == "read" else None,
            }
            for user_id, status in message["delivery"].items()
        ]
        return {**self._counts(message), "items": items}

    def state_view(self, user_id: str) -> Json:
        return {
            "chats": [self.chat_view(user_id, chat_id) for chat_id in self.chats_of(user_id)],
            "unread": self.unread_view(user_id),
            "contacts": self.contacts_view(user_id)["items"],
        }

    def reactions_view(self, message_id: str) -> list[Json]:
        by_emoji: dict[str, list[str]] = {}
        for user_id, emoji in self.messages[message_id]["reactions"]:
            by_emoji.setdefault(emoji, []).append(user_id)
        return [
            {"emoji": emoji, "count": len(user_ids), "user_ids": user_ids}
            for emoji, user_ids in by_emoji.items()
        ]

    def learn_id(self, chat_id: str, seq: int, message_id: str) -> None:
        """The id that the server gave a system message."""
        old = self.chats[chat_id]["messages"][seq - 1]
        if old.startswith("told ") and old != message_id:
            self.chats[chat_id]["messages"][seq - 1] = message_id
            self.messages[message_id] = self.messages.pop(old) | {"id": message_id}


def _check_whole(data: Json, attachments: list[str]) -> None:
    """A message is more than nothing, names an attachment once, and itself with any."""
    is_twice = len(set(attachments)) < len(attachments)
    if is_twice or not (data["content"] or attachments):
        raise Refused(400, "invalid")
    if attachments and "message_id" not in data:
        raise Refused(400, "invalid")


def _formatting(data: Json) -> Json:
    styles = (data.get("metadata") or {}).get("formatting") or {}
    for start, end in (one for ranges in styles.values() for one in ranges):
        if not 0 <= start < end <= len(data["content"]):
            raise Refused(400, "invalid")
    return {style: ranges for style, ranges in styles.items() if ranges}


def _emoji(data: Json) -> str:
    if data["emoji"] not in EMOJI:
        raise Refused(400, "invalid")
    emoji: str = data["emoji"]
    return emoji


def _metadata(message: Json) -> Json:
    if message["system"]:
        return {"system": message["system"]}
    return {"formatting": message["formatting"]} if message["formatting"] else {}
