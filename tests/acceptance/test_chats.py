"""The rules of chats: data-model.md, entity 3, and contract.md's of direct chats and slugs."""

import re

from tests.acceptance.client import Messenger, Person, at_once, new_id

CHAT = """
    SELECT *
    FROM chats
    WHERE id = %(id)s
"""

DIRECT_CHATS = """
    SELECT id::text
    FROM chats
    WHERE slug = %(slug)s
"""


def new_slug(beginning: str = "our-place") -> str:
    return f"{beginning}-{new_id()[:8]}"


# Direct chats


def test_a_direct_chat_has_no_name_and_no_owner(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat = bob.see(f"/v1/chats/{ann.chat_with(bob)}")
    assert (chat["type"], chat["name"], chat["owner_id"]) == ("direct", None, None)
    assert chat["my_role"] == "member"
    assert chat["peer"]["id"] == ann.id


def test_a_direct_chat_has_always_exactly_two_participants(messenger: Messenger) -> None:
    ann, bob, eve = messenger.people("ann", "bob", "eve")
    chat_id = ann.chat_with(bob)
    two = {ann.id: "member", bob.id: "member"}
    for command, data in (
        ("add-members", {"user_ids": [eve.id]}),
        ("remove-member", {"user_id": bob.id}),
        ("leave-group", {}),
        ("change-role", {"user_id": bob.id, "role": "admin"}),
        ("transfer-ownership", {"user_id": bob.id}),
        ("update-group", {"name": "Us"}),
        ("delete-group", {}),
    ):
        assert ann.refused(command, chat_id=chat_id, **data) == "403 forbidden", command
    ann.do("remove-contact", user_id=bob.id)
    assert ann.roles(chat_id) == bob.roles(chat_id) == two


def test_an_existing_direct_chat_is_used_again(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.chat_with(bob)
    for person, other in ((ann, bob), (bob, ann)):
        again = person.do("open-direct-chat", user_id=other.id)
        assert (again["chat_id"], again["created"]) == (chat_id, False)
    ann.do("remove-contact", user_id=bob.id)
    bob.befriend(ann)
    assert bob.do("open-direct-chat", user_id=ann.id)["chat_id"] == chat_id
    bob.say(chat_id)


def test_one_direct_chat_though_both_open_it_at_the_same_moment(messenger: Messenger) -> None:
    for _ in range(3):
        ann, bob = messenger.people("ann", "bob")
        ann.befriend(bob)
        answers = at_once(
            messenger,
            *((ann, "open-direct-chat", {"user_id": bob.id}) for _ in range(2)),
            *((bob, "open-direct-chat", {"user_id": ann.id}) for _ in range(2)),
        )
        opened = [answer.good() for answer in answers]
        assert len({one["chat_id"] for one in opened}) == 1
        assert sorted(one["created"] for one in opened) == [False, False, False, True]
        assert len(messenger.rows(DIRECT_CHATS, slug=direct_slug(ann, bob))) == 1


def test_a_direct_chats_slug_is_made_of_both_ids_sorted(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    assert ann.see(f"/v1/chats/{ann.chat_with(bob)}")["slug"] == direct_slug(ann, bob)
    stolen = {"name": "x", "member_ids": [bob.id], "slug": direct_slug(ann, bob)}
    assert ann.refused("create-group", **stolen) == "400 invalid"


def direct_slug(one: Person, other: Person) -> str:
    return "direct-" + "-".join(sorted([one.id, other.id]))


def test_nobody_has_a_direct_chat_with_themselves(messenger: Messenger) -> None:
    ann = messenger.person("ann")
    assert ann.refused("open-direct-chat", user_id=ann.id) == "400 invalid"


# Groups


def test_a_group_needs_a_name_of_at_most_100_characters(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    members = {"member_ids": [bob.id]}
    assert ann.refused("create-group", **members) == "400 invalid"
    assert ann.refused("create-group", name="", **members) == "400 invalid"
    assert ann.refused("create-group", name="x" * 101, **members) == "400 invalid"
    chat_id = ann.group(bob, name="x" * 100)
    chat = bob.see(f"/v1/chats/{chat_id}")
    assert (chat["type"], chat["name"]) == ("group", "x" * 100)


def test_a_group_belongs_to_its_creator(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.group(bob)
    assert bob.see(f"/v1/chats/{chat_id}")["owner_id"] == ann.id
    assert ann.see(f"/v1/chats/{chat_id}")["my_role"] == "owner"
    assert bob.roles(chat_id) == {ann.id: "owner", bob.id: "member"}


def test_a_group_begins_with_2_to_300_participants(
    messenger: Messenger, crowd: list[Person]
) -> None:
    ann, others = messenger.person("ann"), crowd[:300]
    ids = [other.id for other in others]
    assert ann.refused("create-group", name="Alone", member_ids=[]) == "400 invalid"
    assert ann.refused("create-group", name="Alone", member_ids=[ann.id]) == "400 invalid"
    assert ann.refused("create-group", name="Crowd", member_ids=ids) == "400 invalid"
    assert ann.refused("create-group", name="Ghost", member_ids=[new_id()]) == "404 not-found"
    full = ann.group(*others[:299])
    assert len(ann.roles(full)) == 300
    assert ann.refused("add-members", chat_id=full, user_ids=ids[299:]) == "409 conflict"


def test_a_groups_slug_is_random_unless_given(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    random = ann.do("create-group", name="A", member_ids=[bob.id])["slug"]
    assert re.fullmatch(r"group-[0-9a-z]+", random)
    slug = new_slug("Our_Place")
    assert ann.see(f"/v1/chats/{ann.group(bob, slug=slug)}")["slug"] == slug
    for wrong in ("", "with space", "ä", "a/b", "direct-1", "x" * 101):
        assert ann.refused("create-group", name="A", member_ids=[bob.id], slug=wrong) == (
            "400 invalid"
        )


def test_a_slug_is_unique_until_it_is_given_up(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    slug, other_slug = new_slug(), new_slug()
    first = ann.group(bob, slug=slug)
    taken = {"name": "B", "member_ids": [ann.id], "slug": slug.upper()}
    assert bob.refused("create-group", **taken) == "409 slug-taken"
    second = bob.group(ann)
    assert bob.refused("update-group", chat_id=second, slug=slug) == "409 slug-taken"
    ann.do("update-group", chat_id=first, slug=other_slug)
    assert bob.do("update-group", chat_id=second, slug=slug)["slug"] == slug
    ann.do("delete-group", chat_id=first)
    assert bob.do("update-group", chat_id=second, slug=other_slug)["slug"] == other_slug


def test_a_groups_metadata_changes_and_moves_updated_at(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.group(bob)
    url = "https://example.org/group.png"
    ann.do("update-group", chat_id=chat_id, name="Renamed", avatar_url=url)
    chat = bob.see(f"/v1/chats/{chat_id}")
    assert (chat["name"], chat["avatar_url"]) == ("Renamed", url)
    assert chat["updated_at"] > chat["created_at"]
    ann.do("update-group", chat_id=chat_id, avatar_url=None)
    assert bob.see(f"/v1/chats/{chat_id}")["avatar_url"] is None


def test_the_last_message_orders_the_chat_list(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    first, second = ann.group(bob, name="First"), ann.group(bob, name="Second")
    assert ann.see(f"/v1/chats/{first}")["last_message_at"] is None
    bob.say(second)
    message = bob.message(bob.say(first, "latest"))
    listed = ann.items("/v1/chats")
    assert [chat["id"] for chat in listed] == [first, second]
    assert listed[0]["last_message_at"] == message["created_at"]
    assert listed[0]["last_message"]["content"] == "latest"
    assert listed[0]["unread_count"] == 1


def test_a_deleted_group_is_hidden_and_kept(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.group(bob)
    message_id = bob.say(chat_id)
    assert bob.refused("delete-group", chat_id=chat_id) == "403 forbidden"
    ann.do("delete-group", chat_id=chat_id)
    assert messenger.row(CHAT, id=chat_id)["is_deleted"]
    for person in (ann, bob):
        assert person.items("/v1/chats") == []
        assert person.unread(chat_id) == 0
        assert person.look(f"/v1/messages/{message_id}").said == "404 not-found"
        assert person.refused("send-message", chat_id=chat_id, content="?") == "404 not-found"
