"""The rules of participants: data-model.md, entity 4, and contract.md's "Group rights"."""

from tests.acceptance.client import Json, Messenger, Person, at_once

ROWS = """
    SELECT
        id::text,
        user_id::text,
        role,
        joined_at,
        left_at
    FROM chat_participants
    WHERE chat_id = %(chat_id)s
"""

ACTIVE = """
    SELECT count(*) AS active
    FROM chat_participants
    WHERE chat_id = %(chat_id)s AND left_at IS NULL
"""


def rows(messenger: Messenger, chat_id: str) -> dict[str, Json]:
    return {row["user_id"]: row for row in messenger.rows(ROWS, chat_id=chat_id)}


def told(person: Person, chat_id: str) -> list[str]:
    """What the system messages tell of."""
    return [
        message["metadata"]["system"]["kind"]
        for message in person.messages(chat_id)
        if message["content_type"] == "system"
    ]


def test_active_participants_have_not_left(messenger: Messenger) -> None:
    ann, bob, eve = messenger.people("ann", "bob", "eve")
    chat_id = ann.group(bob, eve)
    eve.do("leave-group", chat_id=chat_id)
    assert set(ann.roles(chat_id)) == {ann.id, bob.id}
    active = {user for user, row in rows(messenger, chat_id).items() if row["left_at"] is None}
    assert active == {ann.id, bob.id}


def test_leaving_keeps_the_row_with_left_at(messenger: Messenger) -> None:
    ann, bob, eve = messenger.people("ann", "bob", "eve")
    chat_id = ann.group(bob, eve)
    before = rows(messenger, chat_id)
    bob.do("leave-group", chat_id=chat_id)
    ann.do("remove-member", chat_id=chat_id, user_id=eve.id)
    after = rows(messenger, chat_id)
    assert set(after) == set(before)
    for person in (bob, eve):
        row = after[person.id]
        assert row["left_at"] > row["joined_at"]
        assert row | {"left_at": None} == before[person.id]


def test_who_left_gets_no_answer_about_the_chat(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.group(bob)
    message_id = ann.say(chat_id)
    bob.do("leave-group", chat_id=chat_id)
    for path in ("", "/participants", "/messages"):
        assert bob.look(f"/v1/chats/{chat_id}{path}").said == "404 not-found"
    assert bob.look(f"/v1/messages/{message_id}").said == "404 not-found"
    assert bob.items("/v1/chats") == []
    assert bob.refused("send-message", chat_id=chat_id, content="?") == "404 not-found"


def test_a_rejoining_member_gets_the_same_row_back(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.group(bob)
    before = rows(messenger, chat_id)[bob.id]
    bob.do("leave-group", chat_id=chat_id)
    assert ann.do("add-members", chat_id=chat_id, user_ids=[bob.id])["added"] == [bob.id]
    after = rows(messenger, chat_id)[bob.id]
    assert (after["id"], after["left_at"]) == (before["id"], None)
    bob.say(chat_id, "back")


def test_both_participants_of_a_direct_chat_are_members(messenger: Messenger) -> None:
    ann, bob = messenger.people("ann", "bob")
    chat_id = ann.chat_with(bob)
    assert ann.roles(chat_id) == {ann.id: "member", bob.id: "member"}


def test_a_group_never_has_more_than_300_active_participants(
    messenger: Messenger, crowd: list[Person]
) -> None:
    """Nor when several admins add at the same moment."""
    (ann, bob), others = messenger.people("ann", "bob"), crowd
    chat_id = ann.group(bob, *others[:288])
    ann.do("change-role", chat_id=chat_id, user_id=bob.id, role="admin")
    answers = at_once(
        messenger,
        *(
            (
                (ann, bob)[n % 2],
                "add-members",
                {"chat_id": chat_id, "user_ids": [other.id for other in others[first : first + 5]]},
            )
            for n, first in enumerate(range(288, 308, 5))
        ),
    )
    assert sorted(answer.said for answer in answers) == [
        "200",
        "200",
        "409 conflict",
        "409 conflict",
    ]
    assert messenger.row(ACTIVE, chat_id=chat_id) == {"active": 300}
    [leaver] = [other for other in others[288:] if other.id in ann.roles(chat_id)][:1]
    [waiting] = [other for other in others[288:] if other.id not in ann.roles(chat_id)][:1]
    add = {"chat_id": chat_id, "user_ids": [waiting.id]}
    assert ann.refused("add-members", **add) == "409 conflict"
    leaver.do("leave-group", chat_id=chat_id)
    assert ann.do("add-members", **add)["added"] == [waiting.id]


def test_new_members_see_all_earlier_messages(messenger: Messenger) -> None:
    ann, bob, eve = messenger.people("ann", "bob", "eve")
    chat_id = ann.group(bob)
    ids = [ann.say(chat_id, "one"), bob.say(chat_id, "two")]
    ann.do("add-members", chat_id=chat_id, user_ids=[eve.id])
    assert [message["id"] for message in eve.messages(chat_id)][:2] == ids
    assert eve.unread(chat_id) == 0


# The owner leaves


def test_when_the_owner_leaves_the_first_admin_owns(messenger: Messenger) -> None:
    ann, bob, eve, kim = messenger.people("ann", "bob", "eve", "kim")
    chat_id = ann.group(bob, eve)
    ann.do("add-members", chat_id=chat_id, user_ids=[kim.id])
    for admin in (kim, eve):
        ann.do("change-role", chat_id=chat_id, user_id=admin.id, role="admin")
    assert ann.do("leave-group", chat_id=chat_id)["new_owner_id"] == eve.id
    assert bob.roles(chat_id) == {eve.id: "owner", bob.id: "member", kim.id: "admin"}
    assert bob.see(f"/v1/chats/{chat_id}")["owner_id"] == eve.id
    assert told(bob, chat_id)[-2:] == ["member_left", "ownership_transferred"]


def test_without_admins_the_longest_member_owns(messenger: Messenger) -> None:
    ann, bob, eve = messenger.people("ann", "bob", "eve")
    chat_id = ann.group(bob)
    ann.do("add-members", chat_id=chat_id, user_ids=[eve.id])
    assert ann.do("leave-group", chat_id=chat_id)["new_owner_id"] == bob.id
    assert bob.do("leave-group", chat_id=chat_id)["new_owner_id"] == eve.id
    assert eve.roles(chat_id) == {eve.id: "owner"}


def test_the_owners_account_deleted_hands_the_group_on(messenger: Messenger) -> None:
    ann, bob, eve = messenger.people("ann", "bob", "eve")
    chat_id = ann.group(bob, eve)
    ann.do("change-role", chat_id=chat_id, user_id=eve.id, role="admin")
    ann.do("delete-account", password="correct horse")
    assert bob.roles(chat_id) == {eve.id: "owner", bob.id: "member"}


# Roles


def staffed(messenger: Messenger) -> tuple[str, Person, Person, Person, Person]:
    """A group with its owner, an admin and two members."""
    owner, admin, member, other = messenger.people("owner", "admin", "member", "other")
    chat_id = owner.group(admin, member, other)
    owner.do("change-role", chat_id=chat_id, user_id=admin.id, role="admin")
    return chat_id, owner, admin, member, other


def test_an_owner_has_all_rights(messenger: Messenger) -> None:
    chat_id, owner, admin, member, other = staffed(messenger)
    newcomer = messenger.person()
    owner.do("update-group", chat_id=chat_id, name="Ours")
    owner.do("add-members", chat_id=chat_id, user_ids=[newcomer.id])
    owner.do("change-role", chat_id=chat_id, user_id=member.id, role="admin")
    owner.do("change-role", chat_id=chat_id, user_id=member.id, role="member")
    owner.do("remove-member", chat_id=chat_id, user_id=other.id)
    owner.do("delete-message", message_id=admin.say(chat_id))
    owner.do("remove-member", chat_id=chat_id, user_id=admin.id)
    assert owner.roles(chat_id) == {
        owner.id: "owner",
        member.id: "member",
        newcomer.id: "member",
    }
    owner.do("transfer-ownership", chat_id=chat_id, user_id=member.id)
    member.do("delete-group", chat_id=chat_id)


def test_an_admin_adds_and_removes_members_and_edits_the_group(messenger: Messenger) -> None:
    chat_id, owner, admin, member, other = staffed(messenger)
    newcomer = messenger.person()
    admin.do("update-group", chat_id=chat_id, name="Ours")
    admin.do("add-members", chat_id=chat_id, user_ids=[newcomer.id])
    admin.do("remove-member", chat_id=chat_id, user_id=other.id)
    admin.do("delete-message", message_id=owner.say(chat_id))
    owner.do("change-role", chat_id=chat_id, user_id=newcomer.id, role="admin")
    for command, data in (
        ("remove-member", {"user_id": owner.id}),
        ("remove-member", {"user_id": newcomer.id}),
        ("change-role", {"user_id": member.id, "role": "admin"}),
        ("transfer-ownership", {"user_id": member.id}),
        ("delete-group", {}),
    ):
        assert admin.refused(command, chat_id=chat_id, **data) == "403 forbidden", command


def test_a_member_can_send_messages_only(messenger: Messenger) -> None:
    chat_id, owner, _, member, other = staffed(messenger)
    message_id = owner.say(chat_id)
    own = member.say(chat_id)
    for command, data in (
        ("add-members", {"user_ids": [messenger.person().id]}),
        ("remove-member", {"user_id": other.id}),
        ("update-group", {"name": "Mine"}),
        ("change-role", {"user_id": member.id, "role": "admin"}),
        ("transfer-ownership", {"user_id": member.id}),
        ("delete-group", {}),
    ):
        assert member.refused(command, chat_id=chat_id, **data) == "403 forbidden", command
    assert member.refused("delete-message", message_id=message_id) == "403 forbidden"
    member.do("delete-message", message_id=own)
    member.do("leave-group", chat_id=chat_id)


def test_ownership_is_handed_on_by_the_owner(messenger: Messenger) -> None:
    chat_id, owner, _, member, _ = staffed(messenger)
    owner.do("transfer-ownership", chat_id=chat_id, user_id=member.id)
    assert member.see(f"/v1/chats/{chat_id}")["owner_id"] == member.id
    roles = member.roles(chat_id)
    assert [user for user, role in roles.items() if role == "owner"] == [member.id]
    assert roles[owner.id] == "admin"


def test_each_change_of_a_group_tells_the_group(messenger: Messenger) -> None:
    ann, bob, eve, kim = messenger.people("ann", "bob", "eve", "kim")
    chat_id = ann.group(bob)
    ann.do("add-members", chat_id=chat_id, user_ids=[eve.id, kim.id])
    ann.do("update-group", chat_id=chat_id, name="Renamed")
    ann.do("remove-member", chat_id=chat_id, user_id=eve.id)
    ann.do("transfer-ownership", chat_id=chat_id, user_id=bob.id)
    kim.do("leave-group", chat_id=chat_id)
    assert told(bob, chat_id) == [
        "members_added",
        "group_renamed",
        "member_removed",
        "ownership_transferred",
        "member_left",
    ]
