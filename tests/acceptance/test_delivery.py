"""The rules of delivery: data-model.md, entity 8."""

from tests.acceptance.client import Json, Messenger, Person

ROWS = """
    SELECT
        user_id::text,
        status
    FROM message_delivery
    WHERE message_id = %(message_id)s
"""


def rows(messenger: Messenger, message_id: str) -> dict[str, str]:
    found = messenger.rows(ROWS, message_id=message_id)
    assert len(found) == len({row["user_id"] for row in found})
    return {row["user_id"]: row["status"] for row in found}


def counts(sender: Person, message_id: str) -> tuple[int, int, int]:
    """Recipients, delivered, read: the same in the message and in its delivery."""
    shown: Json = sender.message(message_id)["delivery"]
    detail = sender.see(f"/v1/messages/{message_id}/delivery")
    assert shown == {name: detail[name] for name in ("recipients", "delivered", "read")}
    assert len(detail["items"]) == shown["recipients"]
    return shown["recipients"], shown["delivered"], shown["read"]


def test_each_recipient_has_one_row_and_the_sender_none(messenger: Messenger) -> None:
    ann, bob, eve = messenger.people("ann", "bob", "eve")
    message_id = ann.say(ann.group(bob, eve))
    assert rows(messenger, message_id) == {bob.id: "pending", eve.id: "pending"}


def test_a_direct_message_has_one_row(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    message_id = ann.say(ann.chat_with(bob))
    assert rows(messenger, message_id) == {bob.id: "pending"}


def test_a_group_message_has_a_row_for_all_participants_but_the_sender(
    messenger: Messenger,
) -> None:
    ann, *others = messenger.people("ann", *["member"] * 11)
    assert len(rows(messenger, ann.say(ann.group(*others)))) == 11


def test_recipients_are_those_who_were_in_the_chat_then(messenger: Messenger) -> None:
    ann, bob, eve = messenger.people("ann", "bob", "eve")
    chat_id = ann.group(bob)
    before = ann.say(chat_id)
    ann.do("add-members", chat_id=chat_id, user_ids=[eve.id])
    ann.do("remove-member", chat_id=chat_id, user_id=bob.id)
    after = ann.say(chat_id)
    assert rows(messenger, before) == {bob.id: "pending"}
    assert rows(messenger, after) == {eve.id: "pending"}


def test_a_message_is_pending_then_delivered_then_read(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.group(bob)
    message_id = ann.say(chat_id)
    path = f"/v1/messages/{message_id}/delivery"
    [item] = ann.items(path)
    assert item == {
        "user_id": bob.id,
        "status": "pending",
        "delivered_at": None,
        "read_at": None,
    }
    bob.do("mark-delivered", chat_id=chat_id, up_to_message_id=message_id)
    [delivered] = ann.items(path)
    assert (delivered["status"], delivered["read_at"]) == ("delivered", None)
    bob.do("mark-read", chat_id=chat_id, up_to_message_id=message_id)
    [read] = ann.items(path)
    assert (read["status"], read["delivered_at"]) == ("read", delivered["delivered_at"])
    assert read["read_at"] > read["delivered_at"]


def test_marks_cover_all_up_to_a_message_and_never_move_back(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.group(bob)
    first, second, third = (ann.say(chat_id) for _ in range(3))
    bob.do("mark-delivered", chat_id=chat_id, up_to_message_id=third)
    read = bob.do("mark-read", chat_id=chat_id, up_to_message_id=second)["position"]
    assert bob.do("mark-read", chat_id=chat_id, up_to_message_id=first)["position"] == read
    assert bob.do("mark-delivered", chat_id=chat_id, up_to_message_id=first)["position"] == read
    statuses = [rows(messenger, message_id)[bob.id] for message_id in (first, second, third)]
    assert statuses == ["read", "read", "delivered"]


def test_reading_counts_as_delivered(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.group(bob)
    message_id = ann.say(chat_id)
    bob.do("mark-read", chat_id=chat_id)
    [item] = ann.items(f"/v1/messages/{message_id}/delivery")
    assert item["delivered_at"] == item["read_at"]
    assert counts(ann, message_id) == (1, 1, 1)


def test_a_direct_message_shows_a_single_status(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.chat_with(bob)
    message_id = ann.say(chat_id)
    assert counts(ann, message_id) == (1, 0, 0)
    bob.do("mark-delivered", chat_id=chat_id, up_to_message_id=message_id)
    assert counts(ann, message_id) == (1, 1, 0)
    bob.do("mark-read", chat_id=chat_id)
    assert counts(ann, message_id) == (1, 1, 1)


def test_a_group_message_shows_read_by_5_of_12(messenger: Messenger) -> None:
    ann, *others = messenger.people("ann", *["member"] * 12)
    chat_id = ann.group(*others)
    message_id = ann.say(chat_id)
    for reader in others[:5]:
        reader.do("mark-read", chat_id=chat_id)
    others[5].do("mark-delivered", chat_id=chat_id, up_to_message_id=message_id)
    assert counts(ann, message_id) == (12, 6, 5)


def test_delivery_is_for_the_sender_only(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    message_id = ann.say(ann.group(bob))
    assert "delivery" not in bob.message(message_id)
    assert bob.look(f"/v1/messages/{message_id}/delivery").status in (403, 404)


def test_edits_and_deletions_leave_delivery_as_it_is(messenger: Messenger) -> None:
    ann, bob, eve = messenger.people("ann", "bob", "eve")
    chat_id = ann.group(bob, eve)
    message_id = ann.say(chat_id)
    bob.do("mark-read", chat_id=chat_id)
    ann.do("edit-message", message_id=message_id, content="edited")
    ann.do("delete-message", message_id=message_id)
    assert rows(messenger, message_id) == {bob.id: "read", eve.id: "pending"}
    eve.do("mark-read", chat_id=chat_id)
    assert counts(ann, message_id) == (2, 2, 2)
