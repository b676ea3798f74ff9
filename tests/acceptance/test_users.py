"""The rules of accounts: data-model.md, entity 1, and contract.md's of deleted ones."""

import subprocess
import sys
from typing import NamedTuple

import pytest

from tests.acceptance.client import PASSWORD, Messenger, Person, new_id
from tests.api import process
from tests.infra.machines import SECRET_TEXT

SETTINGS_SECONDS = 30.0

USER = """
    SELECT *
    FROM users
    WHERE id = %(id)s
"""

USERS_NAMED = """
    SELECT username
    FROM users
    WHERE lower(username) = lower(%(username)s)
    ORDER BY username
"""


def register(messenger: Messenger, **body: object) -> str:
    body = {"password": PASSWORD} | body
    return messenger.request("POST", "/v1/commands/register-user", None, json=body).said


def test_a_username_is_unique_and_case_sensitive(messenger: Messenger) -> None:
    username = messenger.person("Ann").username
    assert register(messenger, username=username) == "409 username-taken"
    assert register(messenger, username=username.lower()) == "200"
    named = messenger.rows(USERS_NAMED, username=username)
    assert sorted(row["username"] for row in named) == sorted([username, username.lower()])


@pytest.mark.parametrize("username", ["ab", "x" * 51, "with space", "with-dash", "ümlaut", "abc\n"])
def test_a_username_is_3_to_50_letters_digits_and_underscores(
    messenger: Messenger, username: str
) -> None:
    assert register(messenger, username=username) == "400 invalid"
    for good in (f"a_{new_id()[:1]}", new_id().replace("-", "_") + "_" * 14):
        assert register(messenger, username=good) in ("200", "409 username-taken")


def test_a_password_is_never_shown_and_kept_as_a_bcrypt_hash_only(messenger: Messenger) -> None:
    person = messenger.person()
    assert messenger.row(USER, id=person.id)["password_hash"].startswith("$2b$04$")
    for path in ("/v1/users/me", f"/v1/users/{person.id}"):
        assert "password" not in str(person.see(path))
    assert person.log_in("battery staple").said == "401 wrong-credentials"


async def test_a_password_hash_takes_12_rounds(messenger: Messenger) -> None:
    """The tests' own setting left out, as production has it."""
    run, user_id = messenger.run, new_id()
    rounds = {"env": "production", "bcrypt_rounds": "12", "secret": SECRET_TEXT}
    rounds |= {"s3_access_key": "nobody", "s3_secret_key": SECRET_TEXT}
    async with (
        process.running(run["database_url"], run["nats_url"], **rounds) as api,
        process.asking(api.url) as client,
    ):
        body = {"username": f"u{user_id[:8]}", "password": PASSWORD, "user_id": user_id}
        response = await client.post("/v1/commands/register-user", json=body)
    messenger.position = response.json()["position"]
    assert messenger.row(USER, id=user_id)["password_hash"].startswith("$2b$12$")


def test_fewer_than_12_rounds_are_refused_but_in_tests() -> None:
    for rounds, code in (("11", 1), ("12", 0)):
        ran = subprocess.run(
            [sys.executable, "-m", "api.cli", "settings"],
            env={"MESSENGER_ENV": "production", "MESSENGER_BCRYPT_ROUNDS": rounds}
            | {"MESSENGER_SECRET": SECRET_TEXT},
            capture_output=True,
            text=True,
            check=False,
            timeout=SETTINGS_SECONDS,
        )
        assert ran.returncode == code, ran.stderr
        assert ("MESSENGER_BCRYPT_ROUNDS" in ran.stderr) == bool(code)


def test_a_display_name_is_the_username_if_none_is_given(messenger: Messenger) -> None:
    ann = messenger.person("ann")
    bob = messenger.person("bob", display_name="Bob the Builder")
    assert ann.see("/v1/users/me")["display_name"] == ann.username
    assert ann.see(f"/v1/users/{bob.id}")["display_name"] == "Bob the Builder"
    bob.do("update-profile", display_name=None)
    assert bob.see("/v1/users/me")["display_name"] == bob.username


def test_a_profile_change_is_shown_and_moves_updated_at(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    before = messenger.row(USER, id=ann.id)
    assert before["updated_at"] == before["created_at"]
    ann.do("update-profile", display_name="Ann", avatar_url="https://example.org/ann.png")
    shown = bob.see(f"/v1/users/{ann.id}")
    assert (shown["display_name"], shown["avatar_url"]) == ("Ann", "https://example.org/ann.png")
    assert messenger.row(USER, id=ann.id)["updated_at"] > before["updated_at"]
    assert ann.refused("update-profile", display_name="x" * 101) == "400 invalid"
    assert ann.refused("update-profile", avatar_url="https://e.org/" + "x" * 500) == "400 invalid"


def test_a_status_is_offline_online_or_away(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    assert bob.see(f"/v1/users/{ann.id}")["status"] == "offline"
    for status in ("online", "away", "offline"):
        ann.do("set-status", status=status)
        assert bob.see(f"/v1/users/{ann.id}")["status"] == status
    assert ann.refused("set-status", status="busy") == "400 invalid"


def test_last_seen_moves_with_sending_and_with_opening_a_chat(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.group(bob)
    message = ann.message(ann.say(chat_id))
    assert ann.see("/v1/users/me")["last_seen"] == message["created_at"]
    bob.do("mark-read", chat_id=chat_id)
    [read] = ann.items(f"/v1/messages/{message['id']}/delivery")
    assert bob.see("/v1/users/me")["last_seen"] == read["read_at"] > message["created_at"]


# Deleted accounts (contract.md, section 2)


class Gone(NamedTuple):
    """Ann deleted her account: contact of Bob, asked by Eve, owner of a group with both."""

    ann: Person
    bob: Person
    eve: Person
    chat_id: str
    message_id: str


@pytest.fixture(scope="module")
def gone(messenger: Messenger) -> Gone:
    ann, bob, eve = messenger.people("ann", "bob", "eve")
    ann.befriend(bob)
    eve.do("request-contact", user_id=ann.id)
    chat_id = ann.group(bob, eve)
    message_id = ann.say(chat_id, "still here")
    ann.delete_account()
    return Gone(ann, bob, eve, chat_id, message_id)


def test_a_deleted_account_is_shown_as_deleted_user_and_is_signed_out(
    messenger: Messenger, gone: Gone
) -> None:
    shown = gone.bob.message(gone.message_id)
    assert shown["sender"] == {"id": gone.ann.id, "display_name": "[Deleted User]"}
    assert shown["content"] == "still here"
    assert gone.ann.look("/v1/users/me").said == "401 unauthenticated"
    assert gone.ann.log_in().said == "401 wrong-credentials"
    assert gone.ann.username not in str(messenger.row(USER, id=gone.ann.id))


def test_a_deleted_accounts_username_stays_reserved(messenger: Messenger, gone: Gone) -> None:
    assert register(messenger, username=gone.ann.username) == "409 username-taken"


def test_a_deleted_account_leaves_contacts_and_groups(gone: Gone) -> None:
    ann, bob, eve, chat_id, _ = gone
    assert bob.contact(ann) is None
    assert eve.contact(ann) is None
    assert bob.roles(chat_id) == {bob.id: "owner", eve.id: "member"}
    assert bob.refused("request-contact", user_id=ann.id) == "404 not-found"
    assert bob.refused("add-members", chat_id=chat_id, user_ids=[ann.id]) == "404 not-found"


def test_an_account_is_deleted_by_its_password_only(messenger: Messenger) -> None:
    ann = messenger.person("ann")
    assert ann.refused("delete-account", password="battery staple") == "403 wrong-credentials"
    assert ann.see("/v1/users/me")["id"] == ann.id


def test_erased_messages_are_shown_as_deleted_ones(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.group(bob)
    erased = ann.say(chat_id, "to be forgotten")
    kept = bob.say(chat_id, "to be kept", reply_to_id=erased)
    ann.do("delete-account", password=PASSWORD, erase_messages=True)
    assert bob.message(erased)["content"] == "[Deleted]"
    assert bob.message(kept)["content"] == "to be kept"
    assert "to be forgotten" not in str(bob.messages(chat_id))
