"""What a command's JSON body may be, before any state is looked at (contract.md, section 2)."""

from typing import Any

import msgspec
import pytest

from commands import BY_NAME
from tests.commands.history import ANNA, BEN, CHAT, message_id

MESSAGE = message_id(1)
UPPER = "0000000A-0000-7000-8000-00000000000A"

ABOUT_A_USER = (
    "request-contact",
    "accept-contact",
    "remove-contact",
    "block-contact",
    "unblock-contact",
    "open-direct-chat",
)

TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("register-user", {"username": "a_1", "password": "12345678"}),
    ("register-user", {"username": "A" * 50, "password": "12345678", "display_name": "é" * 100}),
    ("register-user", {"username": "abc", "password": "12345678", "user_id": ANNA}),
    ("update-profile", {}),
    ("update-profile", {"display_name": None, "avatar_url": None}),
    ("update-profile", {"avatar_url": "HTTPS://example.org/a.png?b#c"}),
    ("update-profile", {"avatar_url": "http://e.org/" + "a" * 487}),
    ("change-password", {"current_password": "12345678", "new_password": "x" * 72}),
    ("create-group", {"name": "é" * 100, "member_ids": [BEN] * 299, "slug": "a" * 100}),
    ("create-group", {"name": "x", "member_ids": [BEN], "slug": "0-_a", "chat_id": CHAT}),
    ("create-group", {"name": "x", "member_ids": [BEN], "slug": None, "avatar_url": None}),
    ("update-group", {"chat_id": CHAT}),
    ("update-group", {"chat_id": CHAT, "name": "x", "slug": "y", "avatar_url": None}),
    ("add-members", {"chat_id": CHAT, "user_ids": [BEN]}),
    ("remove-member", {"chat_id": CHAT, "user_id": BEN}),
    ("leave-group", {"chat_id": CHAT}),
    ("send-message", {"chat_id": CHAT, "content": "日" * 10_000}),
    ("send-message", {"chat_id": CHAT, "content": "", "attachment_ids": [MESSAGE] * 5}),
    (
        "send-message",
        {
            "chat_id": CHAT,
            "content": "x",
            "message_id": MESSAGE,
            "reply_to_id": MESSAGE,
            "metadata": {"formatting": {"bold": [[0, 1]], "italic": []}},
        },
    ),
    ("mark-delivered", {"chat_id": CHAT, "up_to_message_id": MESSAGE}),
    ("mark-read", {"chat_id": CHAT}),
    ("mark-read", {"chat_id": CHAT, "up_to_message_id": None}),
    ("delete-account", {"password": "12345678"}),
    ("delete-account", {"password": "x" * 72, "erase_messages": True}),
    *(("set-status", {"status": status}) for status in ("online", "away", "offline")),
    *((name, {"user_id": BEN}) for name in ABOUT_A_USER),
    ("delete-group", {"chat_id": CHAT}),
    ("change-role", {"chat_id": CHAT, "user_id": BEN, "role": "admin"}),
    ("change-role", {"chat_id": CHAT, "user_id": BEN, "role": "member"}),
    ("transfer-ownership", {"chat_id": CHAT, "user_id": BEN}),
    ("edit-message", {"message_id": MESSAGE, "content": "日" * 10_000}),
    (
        "edit-message",
        {
            "message_id": MESSAGE,
            "content": "x",
            "metadata": {"formatting": {"underline": [[0, 1]]}},
        },
    ),
    ("delete-message", {"message_id": MESSAGE}),
    ("add-reaction", {"message_id": MESSAGE, "emoji": "👍"}),
    ("remove-reaction", {"message_id": MESSAGE, "emoji": ":" + "a" * 30 + ":"}),
]

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("register-user", {"username": "ab", "password": "12345678"}),
    ("register-user", {"username": "a" * 51, "password": "12345678"}),
    ("register-user", {"username": "a b c", "password": "12345678"}),
    ("register-user", {"username": "anna\n", "password": "12345678"}),
    ("register-user", {"username": "ännä", "password": "12345678"}),
    ("register-user", {"username": "anna", "password": "12345678", "display_name": ""}),
    ("register-user", {"username": "anna", "password": "12345678", "display_name": "x" * 101}),
    ("register-user", {"username": "anna", "password": "12345678", "display_name": "  "}),
    ("create-group", {"name": " \t", "member_ids": [BEN]}),
    ("update-group", {"chat_id": CHAT, "name": "  "}),
    ("register-user", {"username": "anna", "password": "12345678", "user_id": UPPER}),
    ("register-user", {"username": "anna", "password": "12345678", "user_id": ANNA + "\n"}),
    ("register-user", {"username": "anna"}),
    ("register-user", {"username": None, "password": "12345678"}),
    ("update-profile", {"avatar_url": "ftp://example.org/a.png"}),
    ("update-profile", {"avatar_url": "http://"}),
    ("update-profile", {"avatar_url": "http://e.org/a b"}),
    ("update-profile", {"avatar_url": "http://e.org/a\n"}),
    ("update-profile", {"avatar_url": "http://e.org/" + "a" * 488}),
    ("update-profile", {"avatar_url": "javascript:alert(1)//http://e.org"}),
    ("change-password", {"current_password": "12345678"}),
    ("create-group", {"name": "", "member_ids": [BEN]}),
    ("create-group", {"name": "x" * 101, "member_ids": [BEN]}),
    ("create-group", {"name": "x", "member_ids": []}),
    ("create-group", {"name": "x", "member_ids": [BEN] * 300}),
    ("create-group", {"name": "x", "member_ids": ["ben"]}),
    ("create-group", {"name": "x", "member_ids": [BEN], "slug": "-a"}),
    ("create-group", {"name": "x", "member_ids": [BEN], "slug": "a\n"}),
    ("create-group", {"name": "x", "member_ids": [BEN], "slug": "a/b"}),
    ("create-group", {"name": "x", "member_ids": [BEN], "slug": "a" * 101}),
    ("update-group", {"chat_id": CHAT, "name": None}),
    ("update-group", {"chat_id": CHAT, "slug": None}),
    ("add-members", {"chat_id": CHAT, "user_ids": []}),
    ("add-members", {"chat_id": CHAT, "user_ids": BEN}),
    ("send-message", {"chat_id": CHAT}),
    ("send-message", {"chat_id": CHAT, "content": None}),
    ("send-message", {"chat_id": CHAT, "content": "x", "attachment_ids": [MESSAGE] * 6}),
    ("send-message", {"chat_id": CHAT, "content": "x", "attachment_ids": ["one"]}),
    ("send-message", {"chat_id": CHAT, "content": "x", "attachment_ids": MESSAGE}),
    ("send-message", {"chat_id": CHAT, "content": "x" * 10_001}),
    ("send-message", {"chat_id": CHAT, "content": 1}),
    ("send-message", {"chat_id": CHAT, "content": "x", "metadata": {"colour": "red"}}),
    ("send-message", {"chat_id": CHAT, "content": "x", "metadata": {"formatting": {"big": []}}}),
    *(
        ("send-message", {"chat_id": CHAT, "content": "x", "metadata": {"formatting": styles}})
        for styles in (
            {"bold": [[0]]},
            {"bold": [[0, 1, 2]]},
            {"bold": [[-1, 1]]},
            {"bold": [[0, 1.5]]},
            {"bold": [[0, 1]] * 1_001},
        )
    ),
    ("mark-delivered", {"chat_id": CHAT}),
    ("delete-account", {}),
    ("delete-account", {"password": "12345678", "erase_messages": None}),
    ("set-status", {"status": "invisible"}),
    ("set-status", {"status": None}),
    *((name, {}) for name in ABOUT_A_USER),
    *((name, {"user_id": "ben"}) for name in ABOUT_A_USER),
    ("change-role", {"chat_id": CHAT, "user_id": BEN, "role": "owner"}),
    ("change-role", {"chat_id": CHAT, "user_id": BEN}),
    ("transfer-ownership", {"chat_id": CHAT}),
    ("edit-message", {"message_id": MESSAGE}),
    ("edit-message", {"message_id": MESSAGE, "content": "x" * 10_001}),
    ("edit-message", {"message_id": MESSAGE, "content": "x", "metadata": {"formatting": []}}),
    ("edit-message", {"content": "x"}),
    ("delete-message", {"message_id": None}),
    ("add-reaction", {"message_id": MESSAGE, "emoji": ""}),
    ("add-reaction", {"message_id": MESSAGE, "emoji": ":" + "a" * 31 + ":"}),
    ("remove-reaction", {"message_id": MESSAGE}),
]


def decode(name: str, body: dict[str, Any]) -> Any:
    return msgspec.json.decode(msgspec.json.encode(body), type=BY_NAME[name].command)


@pytest.mark.parametrize(("name", "body"), TAKEN)
def test_a_right_body_is_taken(name: str, body: dict[str, Any]) -> None:
    decode(name, body)


@pytest.mark.parametrize(("name", "body"), REFUSED)
def test_a_wrong_body_is_refused(name: str, body: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(name, body)


@pytest.mark.parametrize("name", BY_NAME)
def test_unknown_fields_are_refused(name: str) -> None:
    bodies = [body for taken, body in TAKEN if taken == name]
    assert bodies, "every command has a right body above"
    with pytest.raises(msgspec.ValidationError):
        decode(name, bodies[0] | {"colour": "red"})
