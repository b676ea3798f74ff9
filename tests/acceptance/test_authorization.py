"""Who may do and see what: every command, upload and query for everybody, from one table.

It is about one owner: of a group with a deputy (an admin) and a bystander (a member and
contact of theirs), and of a direct chat. The columns are what the caller is:

    stranger   nobody to them                    former    removed from the group
    blocked    a contact whom they blocked       admin     of the group
    contact    with a direct chat with them      owner     the owner themselves
    member     of the group                      deleted   was member and contact; their token

`direct` is the direct chat with the caller, or else the owner's with the bystander.
"""

import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import pytest

from tests.acceptance.client import PASSWORD, Answered, Json, Messenger, at_once, new_id, picture

# yes: 2xx, and of a query: it names the thing asked for; empty: 200, but it does not.
WORDS = {
    "hidden": "404 not-found",
    "no": "403 forbidden",
    "blocked": "403 blocked",
    "contacts": "403 not-contacts",
    "self": "400 invalid",
    "wrong": "403 wrong-credentials",
    "out": "401 unauthenticated",
}

TABLE = """
                                   stranger blocked contact member   former   admin    owner deleted

register-user                      yes      yes     yes     yes      yes      yes      yes   yes
update-profile                     yes      yes     yes     yes      yes      yes      yes   out
change-password                    yes      yes     yes     yes      yes      yes      yes   out
change-password wrong              wrong    wrong   wrong   wrong    wrong    wrong    wrong out
delete-account                     yes      yes     yes     yes      yes      yes      yes   out
delete-account wrong               wrong    wrong   wrong   wrong    wrong    wrong    wrong out
set-status                         yes      yes     yes     yes      yes      yes      yes   out

request-contact                    yes      blocked yes     yes      yes      yes      self  out
accept-contact                     hidden   yes     yes     hidden   hidden   hidden   self  out
remove-contact                     yes      yes     yes     yes      yes      yes      self  out
block-contact                      yes      yes     yes     yes      yes      yes      self  out
unblock-contact                    yes      yes     yes     yes      yes      yes      self  out
open-direct-chat                   contacts yes     yes     contacts contacts contacts self  out

create-group with the owner        yes      blocked yes     yes      yes      yes      yes   out
update-group                       hidden   hidden  hidden  no       hidden   yes      yes   out
update-group direct                hidden   no      no      hidden   hidden   hidden   no    out
delete-group                       hidden   hidden  hidden  no       hidden   no       yes   out
add-members                        hidden   hidden  hidden  no       hidden   yes      yes   out
add-members direct                 hidden   no      no      hidden   hidden   hidden   no    out
remove-member                      hidden   hidden  hidden  no       hidden   yes      yes   out
remove-member an admin             hidden   hidden  hidden  no       hidden   no       yes   out
leave-group                        hidden   hidden  hidden  yes      hidden   yes      yes   out
leave-group direct                 hidden   no      no      hidden   hidden   hidden   no    out
change-role                        hidden   hidden  hidden  no       hidden   no       yes   out
transfer-ownership                 hidden   hidden  hidden  no       hidden   no       yes   out

send-message                       hidden   hidden  hidden  yes      hidden   yes      yes   out
send-message direct                hidden   blocked yes     hidden   hidden   hidden   yes   out
edit-message the owner's           hidden   hidden  hidden  no       hidden   no       yes   out
edit-message direct                hidden   no      no      hidden   hidden   hidden   yes   out
delete-message the owner's         hidden   hidden  hidden  no       hidden   yes      yes   out
delete-message a member's          hidden   hidden  hidden  no       hidden   yes      yes   out
delete-message direct              hidden   no      no      hidden   hidden   hidden   yes   out
add-reaction                       hidden   hidden  hidden  yes      hidden   yes      yes   out
add-reaction direct                hidden   blocked yes     hidden   hidden   hidden   yes   out
remove-reaction                    hidden   hidden  hidden  yes      hidden   yes      yes   out
remove-reaction direct             hidden   yes     yes     hidden   hidden   hidden   yes   out
mark-delivered                     hidden   hidden  hidden  yes      hidden   yes      yes   out
mark-delivered direct              hidden   yes     yes     hidden   hidden   hidden   yes   out
mark-read                          hidden   hidden  hidden  yes      hidden   yes      yes   out
mark-read direct                   hidden   yes     yes     hidden   hidden   hidden   yes   out

upload-attachment                  hidden   hidden  hidden  yes      hidden   yes      yes   out
upload-attachment direct           hidden   blocked yes     hidden   hidden   hidden   yes   out
set-own-avatar                     yes      yes     yes     yes      yes      yes      yes   out
set-chat-avatar                    hidden   hidden  hidden  no       hidden   yes      yes   out
set-chat-avatar direct             hidden   no      no      hidden   hidden   hidden   no    out

/v1/users/me                       yes      yes     yes     yes      yes      yes      yes   out
/v1/users/{id}                     yes      yes     yes     yes      yes      yes      yes   out
/v1/users                          yes      yes     yes     yes      yes      yes      yes   out
/v1/contacts                       empty    yes     yes     empty    empty    empty    empty out
/v1/chats                          empty    empty   empty   yes      empty    yes      yes   out
/v1/chats direct                   empty    yes     yes     empty    empty    empty    yes   out
/v1/chats/{id}                     hidden   hidden  hidden  yes      hidden   yes      yes   out
/v1/chats/{id} direct              hidden   yes     yes     hidden   hidden   hidden   yes   out
/v1/chats/{id}/participants        hidden   hidden  hidden  yes      hidden   yes      yes   out
/v1/chats/{id}/participants direct hidden   yes     yes     hidden   hidden   hidden   yes   out
/v1/chats/{id}/messages            hidden   hidden  hidden  yes      hidden   yes      yes   out
/v1/chats/{id}/messages direct     hidden   yes     yes     hidden   hidden   hidden   yes   out
/v1/messages/{id}                  hidden   hidden  hidden  yes      hidden   yes      yes   out
/v1/messages/{id} direct           hidden   yes     yes     hidden   hidden   hidden   yes   out
/v1/attachments/{id}               hidden   hidden  hidden  yes      hidden   yes      yes   out
/v1/attachments/{id} direct        hidden   yes     yes     hidden   hidden   hidden   yes   out
/v1/messages/{id}/delivery         hidden   hidden  hidden  no       hidden   no       yes   out
/v1/messages/{id}/delivery direct  hidden   no      no      hidden   hidden   hidden   yes   out
/v1/messages/{id}/reactions        hidden   hidden  hidden  yes      hidden   yes      yes   out
/v1/messages/{id}/reactions direct hidden   yes     yes     hidden   hidden   hidden   yes   out
/v1/unread                         empty    empty   empty   yes      empty    yes      yes   out
/v1/search/messages                empty    empty   empty   yes      empty    yes      yes   out
/v1/search/messages direct         empty    yes     yes     empty    empty    empty    yes   out
/v1/state                          empty    empty   empty   yes      empty    yes      yes   out
/v1/state direct                   empty    yes     yes     empty    empty    empty    yes   out
/v1/sessions                       yes      yes     yes     yes      yes      yes      yes   out
/v1/sessions the owner's           empty    empty   empty   empty    empty    empty    yes   out

/v1/status                         yes      yes     yes     yes      yes      yes      yes   yes
/health/live                       yes      yes     yes     yes      yes      yes      yes   yes
/health/ready                      yes      yes     yes     yes      yes      yes      yes   yes
/metrics                           yes      yes     yes     yes      yes      yes      yes   yes
"""


# What these change, other rows rely on: each is tried in a scene of its own.
LASTING = {
    "remove-contact",
    "block-contact",
    "delete-group",
    "add-members",
    "remove-member",
    "leave-group",
    "change-role",
    "transfer-ownership",
    "delete-message",
}


class Scene:
    """The owner's world, and the caller in it."""

    def __init__(self, messenger: Messenger, caller_is: str, *, has_images: bool = False) -> None:
        names = ("owner", "bystander", "deputy", "outsider", "caller")
        people = messenger.people(*names)
        self.owner, self.bystander, self.deputy, self.outsider, self.caller = people
        if caller_is == "owner":
            self.caller = self.owner
        self.word = f"w{new_id()[:8]}"
        self._found_group(caller_is)
        self._befriend(caller_is)
        if has_images:
            self.image, self.direct_image = (self._show(chat) for chat in (self.group, self.direct))
        if caller_is == "blocked":
            self.owner.do("block-contact", user_id=self.caller.id)
        if caller_is == "deleted":
            self.caller.delete_account()

    def _found_group(self, caller_is: str) -> None:
        self.group, self.message = new_id(), new_id()
        members = [self.bystander.id, self.deputy.id]
        if caller_is in ("member", "former", "admin", "deleted"):
            members.append(self.caller.id)
        chat = {"chat_id": self.group}
        commands: list[tuple[str, Json]] = [
            ("create-group", chat | {"name": "Group", "member_ids": members}),
            ("change-role", chat | {"user_id": self.deputy.id, "role": "admin"}),
            ("send-message", chat | {"content": self.word, "message_id": self.message}),
        ]
        if caller_is == "admin":
            role = {"user_id": self.caller.id, "role": "admin"}
            commands.append(("change-role", chat | role))
        if caller_is == "former":
            commands.append(("remove-member", chat | {"user_id": self.caller.id}))
        self.owner.do_all(*commands)
        self.members_message = self.bystander.say(self.group)

    def _befriend(self, caller_is: str) -> None:
        is_contact = caller_is in ("contact", "blocked", "deleted")
        friend = self.caller if is_contact else self.bystander
        # The friend asks: the owner's own contacts then do not name the owner.
        friend.befriend(self.owner)
        self.direct = self.owner.do("open-direct-chat", user_id=friend.id)["chat_id"]
        self.direct_message = self.owner.say(self.direct, self.word)
        for message_id in (self.message, self.direct_message):
            self.owner.do("add-reaction", message_id=message_id, emoji=":ok:")

    def _show(self, chat_id: str) -> str:
        message_id = new_id()
        image: str = self.owner.upload(chat_id, message_id, picture())["attachment_id"]
        self.owner.say(chat_id, "", message_id=message_id, attachment_ids=[image])
        return image


class Look(NamedTuple):
    """A query: whose id stands in the path, its parameters, and the text it should name."""

    id: str
    named: str
    parameters: Json | None = None


BODIES: dict[str, Callable[[Scene], Json]] = {
    "register-user": lambda s: {"username": f"new_{new_id()[:8]}", "password": PASSWORD},
    "update-profile": lambda s: {"display_name": "New"},
    "change-password": lambda s: {"current_password": PASSWORD, "new_password": "new password"},
    "change-password wrong": lambda s: {"current_password": "wrong pw", "new_password": "new pass"},
    "delete-account": lambda s: {"password": PASSWORD},
    "delete-account wrong": lambda s: {"password": "wrong password"},
    "set-status": lambda s: {"status": "away"},
    "request-contact": lambda s: {"user_id": s.owner.id},
    "accept-contact": lambda s: {"user_id": s.owner.id},
    "remove-contact": lambda s: {"user_id": s.owner.id},
    "block-contact": lambda s: {"user_id": s.owner.id},
    "unblock-contact": lambda s: {"user_id": s.owner.id},
    "open-direct-chat": lambda s: {"user_id": s.owner.id},
    "create-group with the owner": lambda s: {
        "name": "New",
        "member_ids": [s.owner.id, s.outsider.id],
    },
    "update-group": lambda s: {"chat_id": s.group, "name": "New"},
    "update-group direct": lambda s: {"chat_id": s.direct, "name": "New"},
    "delete-group": lambda s: {"chat_id": s.group},
    "add-members": lambda s: {"chat_id": s.group, "user_ids": [s.outsider.id]},
    "add-members direct": lambda s: {"chat_id": s.direct, "user_ids": [s.outsider.id]},
    "remove-member": lambda s: {"chat_id": s.group, "user_id": s.bystander.id},
    "remove-member an admin": lambda s: {"chat_id": s.group, "user_id": s.deputy.id},
    "leave-group": lambda s: {"chat_id": s.group},
    "leave-group direct": lambda s: {"chat_id": s.direct},
    "change-role": lambda s: {"chat_id": s.group, "user_id": s.bystander.id, "role": "admin"},
    "transfer-ownership": lambda s: {"chat_id": s.group, "user_id": s.bystander.id},
    "send-message": lambda s: {"chat_id": s.group, "content": "new"},
    "send-message direct": lambda s: {"chat_id": s.direct, "content": "new"},
    "edit-message the owner's": lambda s: {"message_id": s.message, "content": "new"},
    "edit-message direct": lambda s: {"message_id": s.direct_message, "content": "new"},
    "delete-message the owner's": lambda s: {"message_id": s.message},
    "delete-message a member's": lambda s: {"message_id": s.members_message},
    "delete-message direct": lambda s: {"message_id": s.direct_message},
    "add-reaction": lambda s: {"message_id": s.message, "emoji": ":new:"},
    "add-reaction direct": lambda s: {"message_id": s.direct_message, "emoji": ":new:"},
    "remove-reaction": lambda s: {"message_id": s.message, "emoji": ":ok:"},
    "remove-reaction direct": lambda s: {"message_id": s.direct_message, "emoji": ":ok:"},
    "mark-delivered": lambda s: {"chat_id": s.group, "up_to_message_id": s.message},
    "mark-delivered direct": lambda s: {"chat_id": s.direct, "up_to_message_id": s.direct_message},
    "mark-read": lambda s: {"chat_id": s.group},
    "mark-read direct": lambda s: {"chat_id": s.direct},
}

UPLOADS: dict[str, Callable[[Scene], Answered]] = {
    "upload-attachment": lambda s: s.caller.ask_upload(s.group, new_id(), picture()),
    "upload-attachment direct": lambda s: s.caller.ask_upload(s.direct, new_id(), picture()),
    "set-own-avatar": lambda s: s.caller.set_avatar(picture()),
    "set-chat-avatar": lambda s: s.caller.set_avatar(picture(), of=f"chats/{s.group}"),
    "set-chat-avatar direct": lambda s: s.caller.set_avatar(picture(), of=f"chats/{s.direct}"),
}

UPLOAD_ADDRESSES = {
    "upload-attachment": ("POST", "/v1/attachments"),
    "set-own-avatar": ("PUT", "/v1/users/me/avatar"),
    "set-chat-avatar": ("PUT", f"/v1/chats/{new_id()}/avatar"),
}

LOOKS: dict[str, Callable[[Scene], Look]] = {
    "/v1/users/me": lambda s: Look("", s.caller.id),
    "/v1/users/{id}": lambda s: Look(s.owner.id, s.owner.id),
    "/v1/users": lambda s: Look("", s.owner.id, {"prefix": s.owner.username}),
    "/v1/contacts": lambda s: Look("", s.owner.id),
    "/v1/chats": lambda s: Look("", s.group),
    "/v1/chats direct": lambda s: Look("", s.direct),
    "/v1/chats/{id}": lambda s: Look(s.group, s.group),
    "/v1/chats/{id} direct": lambda s: Look(s.direct, s.direct),
    "/v1/chats/{id}/participants": lambda s: Look(s.group, s.owner.id),
    "/v1/chats/{id}/participants direct": lambda s: Look(s.direct, s.owner.id),
    "/v1/chats/{id}/messages": lambda s: Look(s.group, s.message),
    "/v1/chats/{id}/messages direct": lambda s: Look(s.direct, s.direct_message),
    "/v1/messages/{id}": lambda s: Look(s.message, s.word),
    "/v1/messages/{id} direct": lambda s: Look(s.direct_message, s.word),
    "/v1/attachments/{id}": lambda s: Look(s.image, s.image),
    "/v1/attachments/{id} direct": lambda s: Look(s.direct_image, s.direct_image),
    "/v1/messages/{id}/delivery": lambda s: Look(s.message, s.bystander.id),
    "/v1/messages/{id}/delivery direct": lambda s: Look(s.direct_message, "pending"),
    "/v1/messages/{id}/reactions": lambda s: Look(s.message, s.owner.id),
    "/v1/messages/{id}/reactions direct": lambda s: Look(s.direct_message, s.owner.id),
    "/v1/unread": lambda s: Look("", s.group),
    "/v1/search/messages": lambda s: Look("", s.message, {"q": s.word}),
    "/v1/search/messages direct": lambda s: Look("", s.direct_message, {"q": s.word}),
    "/v1/state": lambda s: Look("", s.group),
    "/v1/state direct": lambda s: Look("", s.direct),
    "/v1/sessions": lambda s: Look("", s.caller.session["session_id"]),
    "/v1/sessions the owner's": lambda s: Look("", s.owner.session["session_id"]),
    "/v1/status": lambda s: Look("", "relay"),
    "/health/live": lambda s: Look("", ""),
    "/health/ready": lambda s: Look("", ""),
    "/metrics": lambda s: Look("", ""),
}


def read_table() -> tuple[list[str], dict[str, list[str]]]:
    """The columns' names, and the words of each row."""
    first, *lines = [line for line in TABLE.splitlines() if line]
    columns = first.split()
    split = [line.rsplit(maxsplit=len(columns)) for line in lines]
    return columns, {row: words for row, *words in split}


COLUMNS, ROWS = read_table()
CELLS = [
    pytest.param(row, column, word, id=f"{row}-{column}")
    for row, words in ROWS.items()
    for column, word in zip(COLUMNS, words, strict=True)
]


class Stage:
    """Scenes by column and kind: what is only looked at stays apart from what is written in."""

    def __init__(self, messenger: Messenger) -> None:
        self._messenger = messenger
        self._shared: dict[tuple[str, str], Scene] = {}

    def scene(self, row: str, column: str, word: str) -> Scene:
        changes = row not in LOOKS and word == "yes" and column != "deleted"
        if changes and row.partition(" ")[0] in LASTING:
            return Scene(self._messenger, column)
        return self._of((column, "written in" if changes else "looked at"))

    def _of(self, kind: tuple[str, str]) -> Scene:
        if kind not in self._shared:
            has_images = kind[1] == "looked at"
            self._shared[kind] = Scene(self._messenger, kind[0], has_images=has_images)
        return self._shared[kind]

    @cached_property
    def deletions(self) -> dict[str, Answered]:
        """Each takes more than a second, so they go together."""
        columns = [column for column in COLUMNS if column != "deleted"]
        callers = [Scene(self._messenger, column).caller for column in columns]
        asked = [(caller, "delete-account", {"password": PASSWORD}) for caller in callers]
        return dict(zip(columns, at_once(self._messenger, *asked), strict=True))


@pytest.fixture(scope="module")
def stage(messenger: Messenger) -> Stage:
    return Stage(messenger)


@pytest.mark.parametrize(("row", "column", "word"), CELLS)
def test_the_table_is_what_is_answered(stage: Stage, row: str, column: str, word: str) -> None:
    if (row, word) == ("delete-account", "yes"):
        assert shown(stage.deletions[column]) == word
        return
    scene = stage.scene(row, column, word)
    name = row.partition(" ")[0]
    if row in BODIES:
        answered = scene.caller.ask(name, **BODIES[row](scene))
        assert shown(answered) == word, answered
    elif row in UPLOADS:
        answered = UPLOADS[row](scene)
        assert shown(answered) == word, answered
    else:
        look = LOOKS[row](scene)
        answered = scene.caller.look(name.replace("{id}", look.id), **(look.parameters or {}))
        is_named = look.named in str(answered.body)
        found = shown(answered)
        assert ("empty" if found == "yes" and not is_named else found) == word, answered


def shown(answered: Answered) -> str:
    words = {said: word for word, said in WORDS.items()}
    return "yes" if answered.status < 300 else words.get(answered.said, answered.said)


def test_the_table_names_every_command_and_every_query(messenger: Messenger) -> None:
    document = messenger.request("GET", "/schema/openapi.json", None).good()
    named = {row.partition(" ")[0] for row in ROWS}
    commands, uploads, queries = operations(document)
    assert {name for name in named if not name.startswith("/")} == commands | uploads
    assert {name for name in named if name.startswith("/")} == queries
    assert set(ROWS) == {*BODIES, *UPLOADS, *LOOKS}
    assert {word for words in ROWS.values() for word in words} == {"yes", "empty", *WORDS}


def operations(document: Json) -> tuple[set[str], set[str], set[str]]:
    """Names of the commands and of the uploads, and paths of all that can be got."""
    paths: dict[str, Any] = document["paths"]
    prefix = "/v1/commands/"
    commands = {path.removeprefix(prefix) for path in paths if path.startswith(prefix)}
    queries = {re.sub(r"{\w+}", "{id}", path) for path, one in paths.items() if "get" in one}
    uploads = {
        operation["operationId"]
        for one in paths.values()
        for operation in one.values()
        if "multipart/form-data" in operation.get("requestBody", {}).get("content", {})
    }
    return commands, uploads, queries


def test_a_session_is_ended_by_its_user_only(messenger: Messenger) -> None:
    ann, eve = messenger.people("ann", "eve")
    path = f"/v1/sessions/{ann.session['session_id']}"
    assert messenger.request("DELETE", path, eve.token).said == "404 not-found"
    assert ann.look("/v1/users/me").said == "200"
    assert messenger.request("DELETE", path, ann.token).said == "204"


@pytest.mark.parametrize("token", [None, "", "nonsense", "a.b.c"])
def test_without_a_valid_token_nothing_is_answered(messenger: Messenger, token: str) -> None:
    for row in ROWS:
        if ROWS[row][COLUMNS.index("deleted")] == "out":
            method, path = address(row.partition(" ")[0])
            content: Json = {} if method == "GET" else {"json": {}}
            answered = messenger.request(method, path, token, **content)
            assert answered.said == "401 unauthenticated", row


def address(name: str) -> tuple[str, str]:
    if name.startswith("/"):
        return "GET", name.replace("{id}", new_id())
    return UPLOAD_ADDRESSES.get(name) or ("POST", f"/v1/commands/{name}")
