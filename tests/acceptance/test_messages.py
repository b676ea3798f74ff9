"""The rules of messages: data-model.md, entity 5, and contract.md's forms of them."""

import pytest

from tests.acceptance.client import Json, Messenger, Person, new_id

ROW = """
    SELECT *
    FROM messages
    WHERE id = %(id)s
"""

VERSIONS = """
    SELECT type
    FROM event_log
    WHERE stream = %(stream)s
    ORDER BY position
"""

FIELDS = {
    "id",
    "chat_id",
    "seq",
    "position",
    "sender",
    "content",
    "content_type",
    "metadata",
    "reply_to",
    "is_edited",
    "edited_at",
    "is_deleted",
    "deleted_at",
    "created_at",
    "reactions",
    "attachments",
}


@pytest.fixture
def talk(messenger: Messenger) -> tuple[Person, Person, str]:
    ann, bob = messenger.people("ann", "bob")
    return ann, bob, ann.group(bob)


Talk = tuple[Person, Person, str]


def test_a_message_is_shown_with_all_its_fields(talk: Talk) -> None:
    ann, bob, chat_id = talk
    message = bob.message(ann.say(chat_id, "hello"))
    assert set(message) == FIELDS
    assert (message["content"], message["content_type"]) == ("hello", "text")
    assert message["sender"] == {"id": ann.id, "display_name": ann.username}
    assert (message["is_edited"], message["is_deleted"]) == (False, False)
    assert (message["metadata"], message["reactions"], message["attachments"]) == ({}, [], [])
    assert set(ann.message(message["id"])) == FIELDS | {"delivery"}


def test_content_has_1_to_10000_characters(talk: Talk) -> None:
    ann, bob, chat_id = talk
    longest = "\N{GRINNING FACE}" * 10_000
    assert bob.message(ann.say(chat_id, longest))["content"] == longest
    for content in ("", "x" * 10_001, "nul \0 here"):
        assert ann.refused("send-message", chat_id=chat_id, content=content) == "400 invalid"


def test_an_edit_is_a_new_version_with_a_flag(talk: Talk) -> None:
    ann, bob, chat_id = talk
    message_id = ann.say(chat_id, "helo")
    sent = ann.message(message_id)
    ann.do("edit-message", message_id=message_id, content="hello")
    message = bob.message(message_id)
    assert (message["content"], message["is_edited"]) == ("hello", True)
    assert message["edited_at"] > message["created_at"] == sent["created_at"]
    assert (message["seq"], message["position"]) == (sent["seq"], sent["position"])
    versions = ann.messenger.rows(VERSIONS, stream=f"message-{message_id}")
    assert [row["type"] for row in versions] == ["message_sent", "message_edited"]


def test_only_the_sender_edits(talk: Talk) -> None:
    ann, bob, chat_id = talk
    message_id = bob.say(chat_id)
    assert ann.refused("edit-message", message_id=message_id, content="!") == "403 forbidden"
    assert bob.message(message_id)["is_edited"] is False


def test_an_edit_that_changes_nothing_is_none(talk: Talk) -> None:
    ann, bob, chat_id = talk
    message_id = ann.say(chat_id, "same")
    ann.do("edit-message", message_id=message_id, content="same")
    assert bob.message(message_id)["is_edited"] is False


def test_a_deleted_message_stays_as_deleted(talk: Talk) -> None:
    ann, bob, chat_id = talk
    message_id = ann.say(chat_id, "regret", metadata={"formatting": {"bold": [[0, 6]]}})
    ann.do("delete-message", message_id=message_id)
    message = bob.message(message_id)
    assert (message["content"], message["is_deleted"]) == ("[Deleted]", True)
    assert message["deleted_at"] > message["created_at"]
    assert message["sender"]["id"] == ann.id
    assert message["metadata"] == {}
    assert [shown["id"] for shown in bob.messages(chat_id)] == [message_id]
    row = ann.messenger.row(ROW, id=message_id)
    assert (row["is_deleted"], row["content"]) == (True, "[Deleted]")


def test_a_deleted_message_can_not_be_edited_and_is_deleted_once(talk: Talk) -> None:
    ann, bob, chat_id = talk
    message_id = ann.say(chat_id)
    deleted = ann.do("delete-message", message_id=message_id)["position"]
    assert ann.do("delete-message", message_id=message_id)["position"] == deleted
    assert ann.refused("edit-message", message_id=message_id, content="x") == "409 conflict"
    assert bob.refused("add-reaction", message_id=message_id, emoji="👍") == "409 conflict"


def test_a_deleted_senders_messages_show_deleted_user(talk: Talk) -> None:
    ann, bob, chat_id = talk
    message_id = ann.say(chat_id, "I was here")
    reply_id = bob.say(chat_id, reply_to_id=message_id)
    ann.do("delete-account", password="correct horse")
    nobody = {"id": ann.id, "display_name": "[Deleted User]"}
    assert bob.message(message_id)["sender"] == nobody
    assert bob.message(message_id)["content"] == "I was here"
    assert bob.message(reply_id)["reply_to"]["sender"] == nobody


def test_system_messages_have_no_sender(talk: Talk) -> None:
    ann, bob, chat_id = talk
    ann.do("update-group", chat_id=chat_id, name="Renamed")
    [message] = bob.messages(chat_id)
    assert (message["sender"], message["content_type"]) == (None, "system")
    row = ann.messenger.row(ROW, id=message["id"])
    assert (row["sender_id"], row["content_type"]) == (None, "system")
    for command, data in (
        ("edit-message", {"content": "x"}),
        ("delete-message", {}),
        ("add-reaction", {"emoji": "👍"}),
    ):
        assert ann.refused(command, message_id=message["id"], **data) == "403 forbidden"


def test_a_reply_shows_what_it_answers(talk: Talk) -> None:
    ann, bob, chat_id = talk
    asked = ann.say(chat_id, "well?")
    reply = ann.message(bob.say(chat_id, "yes", reply_to_id=asked))
    sender = {"id": ann.id, "display_name": ann.username}
    assert reply["reply_to"] == {"id": asked, "sender": sender, "content": "well?"}


def test_a_reply_keeps_its_link_when_the_original_is_deleted(talk: Talk) -> None:
    ann, bob, chat_id = talk
    asked = ann.say(chat_id, "well?")
    reply_id = bob.say(chat_id, "yes", reply_to_id=asked)
    ann.do("delete-message", message_id=asked)
    reply = bob.message(reply_id)
    assert reply["reply_to"]["id"] == asked
    assert reply["reply_to"]["content"] == "[Message Deleted]"
    assert reply["content"] == "yes"


def test_a_reply_stays_in_its_chat(talk: Talk) -> None:
    ann, bob, chat_id = talk
    elsewhere = ann.say(ann.group(bob))
    for target in (elsewhere, new_id()):
        data = {"chat_id": chat_id, "content": "re", "reply_to_id": target}
        assert ann.refused("send-message", **data) == "404 not-found"


def test_formatting_is_kept_and_lies_inside_the_content(talk: Talk) -> None:
    ann, bob, chat_id = talk
    formatting = {"bold": [[0, 5], [10, 15]], "italic": [[7, 12]]}
    metadata = {"formatting": formatting}
    assert bob.message(ann.say(chat_id, "x" * 15, metadata=metadata))["metadata"] == metadata
    message_id = ann.say(chat_id)
    ann.do("edit-message", message_id=message_id, content="x" * 15, metadata=metadata)
    assert bob.message(message_id)["metadata"] == metadata
    for wrong in ([0, 16], [3, 3], [5, 2], [-1, 2], [1]):
        data = {"content": "x" * 15, "metadata": {"formatting": {"bold": [wrong]}}}
        assert ann.refused("send-message", chat_id=chat_id, **data) == "400 invalid"


def test_the_newest_50_come_first_then_back_page_by_page(talk: Talk) -> None:
    ann, bob, chat_id = talk
    data: Json = {"chat_id": chat_id}
    ann.do_all(*(("send-message", data | {"content": str(n)}) for n in range(1, 121)))
    path = f"/v1/chats/{chat_id}/messages"
    seen: list[int] = []
    before: Json = {}
    for length, has_more in ((50, True), (50, True), (20, False)):
        page = bob.see(path, **before)
        assert (len(page["items"]), page["has_more"]) == (length, has_more)
        seen += [message["seq"] for message in page["items"]]
        before = {"before": seen[-1]}
    assert seen == list(range(120, 0, -1))
    forward = bob.see(path, after=100, limit=15)
    assert [message["content"] for message in forward["items"]] == [str(n) for n in range(101, 116)]
    assert bob.look(path, limit=101).said == "400 invalid"


def test_a_chats_messages_are_counted_without_gaps(talk: Talk) -> None:
    ann, bob, chat_id = talk
    for sender in (ann, bob, ann):
        sender.say(chat_id)
    ann.do("update-group", chat_id=chat_id, name="New")
    ann.do("delete-message", message_id=ann.say(chat_id))
    messages = bob.messages(chat_id)
    assert [message["seq"] for message in messages] == [1, 2, 3, 4, 5]
    positions = [message["position"] for message in messages]
    assert positions == sorted(positions)


def test_a_message_is_found_by_its_words_until_it_is_deleted(talk: Talk) -> None:
    ann, bob, chat_id = talk
    message_id = ann.say(chat_id, "the quick brown fox jumps")
    ann.say(chat_id, "lazy dogs")
    stranger = ann.messenger.person("stranger")
    [found] = bob.items("/v1/search/messages", q="jumping foxes")
    assert found["message"]["id"] == message_id
    assert stranger.items("/v1/search/messages", q="fox") == []
    ann.do("edit-message", message_id=message_id, content="a slow badger")
    assert bob.items("/v1/search/messages", q="fox", chat_id=chat_id) == []
    assert len(bob.items("/v1/search/messages", q="badger", chat_id=chat_id)) == 1
    ann.do("delete-message", message_id=message_id)
    assert bob.items("/v1/search/messages", q="badger") == []


def test_text_without_spaces_is_found_too(talk: Talk) -> None:
    ann, bob, chat_id = talk
    message_id = ann.say(chat_id, "今天天气很好我们去公园吧")
    for q in ("天气", "公园", "我们去"):
        [found] = bob.items("/v1/search/messages", q=q)
        assert found["message"]["id"] == message_id


def test_the_same_id_and_content_again_is_the_same_message(talk: Talk) -> None:
    ann, bob, chat_id = talk
    data = {"chat_id": chat_id, "content": "once", "message_id": new_id()}
    assert ann.do("send-message", **data) == ann.do("send-message", **data)
    assert ann.refused("send-message", **(data | {"content": "twice"})) == "409 conflict"
    assert len(bob.messages(chat_id)) == 1
