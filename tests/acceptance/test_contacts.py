"""The rules of contacts: data-model.md, entity 2, and contract.md's of blocks."""

from typing import Any

from tests.acceptance.client import Json, Messenger, Person, at_once

# Both rows of a pair, by who has them.
PAIR = """
    SELECT
        user_id::text,
        contact_id::text,
        status,
        requested_by::text,
        created_at,
        accepted_at
    FROM contacts
    WHERE %(one)s IN (user_id, contact_id) AND %(other)s IN (user_id, contact_id)
"""


def pair(one: Person, other: Person) -> dict[str, Json]:
    rows = one.messenger.rows(PAIR, one=one.id, other=other.id)
    assert len(rows) == len({row["user_id"] for row in rows})
    return {row["user_id"]: row for row in rows}


def statuses(one: Person, other: Person) -> tuple[str | None, str | None]:
    """What the contact list of each says of the other."""
    return status(one.contact(other)), status(other.contact(one))


def status(contact: Json | None) -> str | None:
    return contact["status"] if contact else None


def test_a_request_makes_two_pending_rows_that_say_who_asked(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    ann.do("request-contact", user_id=bob.id)
    rows = pair(ann, bob)
    assert {row["user_id"]: row["contact_id"] for row in rows.values()} == {
        ann.id: bob.id,
        bob.id: ann.id,
    }
    for row in rows.values():
        assert (row["status"], row["requested_by"], row["accepted_at"]) == ("pending", ann.id, None)


def test_acceptance_updates_both_rows(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    ann.befriend(bob)
    rows = list(pair(ann, bob).values())
    assert [(row["status"], row["requested_by"]) for row in rows] == [("accepted", ann.id)] * 2
    assert rows[0]["accepted_at"] == rows[1]["accepted_at"] > rows[0]["created_at"]


def test_each_sees_the_contact_in_a_list_by_status(messenger: Messenger) -> None:
    ann, bob, eve = messenger.people("ann", "bob", "eve")
    ann.befriend(bob)
    ann.do("request-contact", user_id=eve.id)
    [accepted] = ann.items("/v1/contacts", status="accepted")
    [pending] = ann.items("/v1/contacts", status="pending")
    assert set(accepted) == {"user", "status", "requested_by", "created_at", "accepted_at"}
    assert accepted["user"] == ann.see(f"/v1/users/{bob.id}")
    assert (pending["user"]["id"], pending["requested_by"]) == (eve.id, ann.id)
    assert pending["accepted_at"] is None
    assert ann.items("/v1/contacts", status="blocked") == []
    assert [item["user"]["id"] for item in eve.items("/v1/contacts")] == [ann.id]
    assert ann.look("/v1/contacts", status="friend").said == "400 invalid"


def test_only_the_one_who_was_asked_can_accept(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    assert bob.refused("accept-contact", user_id=ann.id) == "404 not-found"
    ann.do("request-contact", user_id=bob.id)
    assert ann.refused("accept-contact", user_id=bob.id) == "403 forbidden"
    assert statuses(ann, bob) == ("pending", "pending")


def test_asking_or_accepting_again_changes_nothing(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    asked = ann.do("request-contact", user_id=bob.id)["position"]
    assert ann.do("request-contact", user_id=bob.id)["position"] == asked
    accepted = bob.do("accept-contact", user_id=ann.id)["position"]
    assert bob.do("accept-contact", user_id=ann.id)["position"] == accepted
    assert ann.do("request-contact", user_id=bob.id)["position"] == accepted


def test_nobody_is_their_own_contact(messenger: Messenger) -> None:
    ann = messenger.person("ann")
    assert ann.refused("request-contact", user_id=ann.id) == "400 invalid"
    assert ann.refused("block-contact", user_id=ann.id) == "400 invalid"


def test_who_asks_back_accepts(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    ann.do("request-contact", user_id=bob.id)
    bob.do("request-contact", user_id=ann.id)
    assert statuses(ann, bob) == ("accepted", "accepted")


def test_both_asking_at_the_same_moment_become_contacts(messenger: Messenger) -> None:
    for _ in range(3):
        ann, bob = messenger.people("ann", "bob")
        answers = at_once(
            messenger,
            (ann, "request-contact", {"user_id": bob.id}),
            (bob, "request-contact", {"user_id": ann.id}),
        )
        assert [answer.said for answer in answers] == ["200", "200"]
        assert statuses(ann, bob) == ("accepted", "accepted")


def test_only_accepted_contacts_open_a_direct_chat(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    assert ann.refused("open-direct-chat", user_id=bob.id) == "403 not-contacts"
    ann.do("request-contact", user_id=bob.id)
    assert ann.refused("open-direct-chat", user_id=bob.id) == "403 not-contacts"
    assert bob.refused("open-direct-chat", user_id=ann.id) == "403 not-contacts"
    bob.do("accept-contact", user_id=ann.id)
    assert ann.do("open-direct-chat", user_id=bob.id)["created"]


def test_a_request_is_declined_or_withdrawn_by_removal(messenger: Messenger) -> None:
    for decliner in (0, 1):
        people = messenger.people("ann", "bob")
        ann, bob = people
        ann.do("request-contact", user_id=bob.id)
        people[decliner].do("remove-contact", user_id=people[1 - decliner].id)
        assert pair(ann, bob) == {}
        assert bob.refused("accept-contact", user_id=ann.id) == "404 not-found"


def test_removal_by_either_deletes_both_rows(messenger: Messenger) -> None:
    for remover in (0, 1):
        people = messenger.people("ann", "bob")
        people[0].befriend(people[1])
        people[remover].do("remove-contact", user_id=people[1 - remover].id)
        assert pair(*people) == {}
        assert statuses(people[0], people[1]) == (None, None)


def test_removal_preserves_the_chat_history(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.chat_with(bob)
    message_id = ann.say(chat_id, "remember")
    ann.do("remove-contact", user_id=bob.id)
    for person in (ann, bob):
        assert [message["id"] for message in person.messages(chat_id)] == [message_id]
        assert chat_id in [chat["id"] for chat in person.items("/v1/chats")]
        data = {"chat_id": chat_id, "content": "again?"}
        assert person.refused("send-message", **data) == "403 not-contacts"
        assert person.do("open-direct-chat", user_id=(bob if person is ann else ann).id) == {
            "position": messenger.position,
            "chat_id": chat_id,
            "created": False,
        }


# Blocks (contract.md, section 2)


def blocked(messenger: Messenger, **first: Any) -> tuple[Person, Person]:
    """The blocker, and the one they blocked."""
    ann, bob = messenger.people("ann", "bob")
    ann.befriend(bob)
    ann.do("block-contact", user_id=bob.id)
    return ann, bob


def test_a_block_changes_the_blockers_row_only(messenger: Messenger) -> None:
    ann, bob = blocked(messenger)
    assert statuses(ann, bob) == ("blocked", "accepted")
    rows = pair(ann, bob)
    assert (rows[ann.id]["status"], rows[bob.id]["status"]) == ("blocked", "accepted")


def test_nothing_tells_of_a_block(messenger: Messenger) -> None:
    ann, bob, eve = messenger.people("ann", "bob", "eve")
    ann.befriend(bob)
    seen = bob.contact(ann)
    ann.do("block-contact", user_id=bob.id)
    ann.do("block-contact", user_id=eve.id)
    assert bob.contact(ann) == seen
    assert eve.contact(ann) is None
    assert bob.see(f"/v1/users/{ann.id}")["id"] == ann.id


def test_a_blocked_user_can_not_send_request_or_add(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.chat_with(bob)
    group_id = bob.group(messenger.person())
    ann.do("block-contact", user_id=bob.id)
    ids = [ann.id]
    for command, data in (
        ("send-message", {"chat_id": chat_id, "content": "hello?"}),
        ("request-contact", {"user_id": ann.id}),
        ("create-group", {"name": "Come!", "member_ids": ids}),
        ("add-members", {"chat_id": group_id, "user_ids": ids}),
    ):
        assert bob.refused(command, **data) == "403 blocked", command
    assert ann.unread(chat_id) == 0
    assert ann.refused("send-message", chat_id=chat_id, content="hello?") == "403 blocked"


def test_strangers_can_be_blocked_too(messenger: Messenger) -> None:
    ann, eve = messenger.people("ann", "eve")
    ann.do("block-contact", user_id=eve.id)
    assert statuses(ann, eve) == ("blocked", None)
    assert eve.refused("request-contact", user_id=ann.id) == "403 blocked"


def test_unblocking_restores_what_there_was(messenger: Messenger) -> None:
    ann, bob, eve, kim = messenger.people("ann", "bob", "eve", "kim")
    ann.befriend(bob)
    eve.do("request-contact", user_id=ann.id)
    before = [pair(ann, other) for other in (bob, eve, kim)]
    for command in ("block-contact", "unblock-contact"):
        for other in (bob, eve, kim):
            ann.do(command, user_id=other.id)
    assert [pair(ann, other) for other in (bob, eve, kim)] == before
    assert before[2] == {}
    ann.do("accept-contact", user_id=eve.id)
    assert statuses(ann, eve) == ("accepted", "accepted")


def test_each_of_two_can_block_the_other(messenger: Messenger) -> None:
    ann, bob = blocked(messenger)
    bob.do("block-contact", user_id=ann.id)
    assert statuses(ann, bob) == ("blocked", "blocked")
    ann.do("unblock-contact", user_id=bob.id)
    assert statuses(ann, bob) == ("accepted", "blocked")
    assert ann.refused("request-contact", user_id=bob.id) == "403 blocked"


def test_a_removal_under_a_block_leaves_the_block(messenger: Messenger) -> None:
    ann, bob = blocked(messenger)
    bob.do("remove-contact", user_id=ann.id)
    assert statuses(ann, bob) == ("blocked", None)
    ann.do("unblock-contact", user_id=bob.id)
    assert pair(ann, bob) == {}
