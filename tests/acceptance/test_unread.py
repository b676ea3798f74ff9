"""The rules of unread messages: data-model.md, entity 9."""

from tests.acceptance.client import Messenger, Person

ROWS = """
    SELECT
        user_id::text,
        chat_id::text,
        message_id::text
    FROM unread_messages
    WHERE user_id = %(user_id)s AND chat_id = %(chat_id)s
"""


def rows(person: Person, chat_id: str) -> list[str]:
    """The unread messages' ids; the counter must be their number."""
    found = person.messenger.rows(ROWS, user_id=person.id, chat_id=chat_id)
    assert person.unread(chat_id) == len(found)
    assert person.see(f"/v1/chats/{chat_id}")["unread_count"] == len(found)
    return [row["message_id"] for row in found]


def test_a_message_is_unread_for_each_recipient_but_not_its_sender(messenger: Messenger) -> None:
    ann, bob, eve = messenger.people("ann", "bob", "eve")
    chat_id = ann.group(bob, eve)
    message_id = ann.say(chat_id)
    assert rows(bob, chat_id) == rows(eve, chat_id) == [message_id]
    assert rows(ann, chat_id) == []


def test_opening_a_chat_deletes_all_its_rows_of_the_user(messenger: Messenger) -> None:
    ann, bob, eve = messenger.people("ann", "bob", "eve")
    chat_id, other_id = ann.group(bob, eve), ann.group(bob)
    for _ in range(3):
        ann.say(chat_id)
    ann.say(other_id)
    bob.do("mark-read", chat_id=chat_id)
    assert rows(bob, chat_id) == []
    assert (len(rows(eve, chat_id)), len(rows(bob, other_id))) == (3, 1)


def test_reading_up_to_a_message_leaves_the_later_ones(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.group(bob)
    first, second, third = (ann.say(chat_id) for _ in range(3))
    bob.do("mark-read", chat_id=chat_id, up_to_message_id=second)
    assert rows(bob, chat_id) == [third]
    bob.do("mark-read", chat_id=chat_id, up_to_message_id=first)
    assert rows(bob, chat_id) == [third]


def test_the_count_is_that_of_the_chats_rows(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.chat_with(bob)
    for count in (1, 2, 3):
        ann.say(chat_id)
        assert len(rows(bob, chat_id)) == count


def test_the_badge_counts_chats_with_something_unread(messenger: Messenger) -> None:
    ann, bob, eve = messenger.people("ann", "bob", "eve")
    first, second, third = ann.group(bob, eve), ann.group(bob), ann.chat_with(bob)
    for chat_id in (first, second, second, third):
        ann.say(chat_id)
    bob.do("mark-read", chat_id=third)
    seen = bob.see("/v1/unread")
    assert (seen["chats"], seen["messages"]) == (2, 3)
    assert {item["chat_id"]: item["count"] for item in seen["items"]} == {first: 1, second: 2}


def test_a_deleted_message_is_not_unread(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.group(bob)
    message_id, other_id = ann.say(chat_id), ann.say(chat_id)
    ann.do("delete-message", message_id=message_id)
    assert rows(bob, chat_id) == [other_id]


def test_an_edited_message_is_not_unread_again(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.group(bob)
    message_id = ann.say(chat_id)
    bob.do("mark-read", chat_id=chat_id)
    ann.do("edit-message", message_id=message_id, content="edited")
    assert rows(bob, chat_id) == []


def test_leaving_removes_the_chats_unread_rows(messenger: Messenger) -> None:
    ann, bob, eve = messenger.people("ann", "bob", "eve")
    chat_id = ann.group(bob, eve)
    ann.say(chat_id)
    bob.do("leave-group", chat_id=chat_id)
    ann.do("remove-member", chat_id=chat_id, user_id=eve.id)
    for person in (bob, eve):
        assert messenger.rows(ROWS, user_id=person.id, chat_id=chat_id) == []
        assert person.see("/v1/unread") == {"chats": 0, "messages": 0, "items": []}


def test_who_comes_back_has_only_later_messages_unread(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.group(bob)
    ann.say(chat_id)
    bob.do("leave-group", chat_id=chat_id)
    ann.say(chat_id)
    ann.do("add-members", chat_id=chat_id, user_ids=[bob.id])
    assert rows(bob, chat_id) == []
    later = ann.say(chat_id)
    assert rows(bob, chat_id) == [later]


def test_a_block_leaves_what_was_unread_before_it(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.chat_with(bob)
    message_id = bob.say(chat_id)
    ann.do("block-contact", user_id=bob.id)
    assert rows(ann, chat_id) == [message_id]
    ann.do("mark-read", chat_id=chat_id)
    assert rows(ann, chat_id) == []


def test_a_deleted_account_has_nothing_unread(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id, direct_id = ann.group(bob), ann.chat_with(bob)
    message_id = ann.say(chat_id)
    for one in (chat_id, direct_id):
        bob.say(one)
    bob.do("delete-account", password="correct horse")
    for one in (chat_id, direct_id):
        assert messenger.rows(ROWS, user_id=bob.id, chat_id=one) == []
        assert len(rows(ann, one)) == 1
    assert ann.message(message_id)["delivery"]["recipients"] == 1
