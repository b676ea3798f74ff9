"""The rules of reactions: data-model.md, entity 7."""

import pytest

from tests.acceptance.client import Json, Messenger, Person, at_once

ROWS = """
    SELECT
        user_id::text,
        emoji
    FROM message_reactions
    WHERE message_id = %(message_id)s
"""


@pytest.fixture
def liked(messenger: Messenger) -> tuple[Person, Person, str]:
    ann, bob = messenger.people("ann", "bob")
    return ann, bob, ann.say(ann.group(bob))


Liked = tuple[Person, Person, str]


def reactions(person: Person, message_id: str) -> list[Json]:
    return sorted(person.message(message_id)["reactions"], key=lambda one: str(one["emoji"]))


def test_one_user_adds_several_different_emojis(liked: Liked) -> None:
    ann, bob, message_id = liked
    for emoji in ("👍", "🎉", ":tada:"):
        bob.do("add-reaction", message_id=message_id, emoji=emoji)
    assert {one["emoji"] for one in reactions(ann, message_id)} == {"👍", "🎉", ":tada:"}


def test_the_same_emoji_again_by_the_same_user_changes_nothing(liked: Liked) -> None:
    ann, bob, message_id = liked
    data = {"message_id": message_id, "emoji": "👍"}
    added = bob.do("add-reaction", **data)["position"]
    assert bob.do("add-reaction", **data)["position"] == added
    answers = at_once(ann.messenger, *[(ann, "add-reaction", data | {"emoji": "🎉"})] * 3)
    assert [answer.said for answer in answers] == ["200"] * 3
    rows = ann.messenger.rows(ROWS, message_id=message_id)
    assert sorted(row["user_id"] for row in rows) == sorted([ann.id, bob.id])


def test_reactions_are_grouped_by_emoji_with_a_count(liked: Liked) -> None:
    ann, bob, message_id = liked
    ann.do("add-reaction", message_id=message_id, emoji="👍")
    bob.do("add-reaction", message_id=message_id, emoji="👍")
    bob.do("add-reaction", message_id=message_id, emoji="🎉")
    assert reactions(ann, message_id) == [
        {"emoji": "🎉", "count": 1, "me": False},
        {"emoji": "👍", "count": 2, "me": True},
    ]


def test_who_reacted_is_listed(liked: Liked) -> None:
    ann, bob, message_id = liked
    bob.do("add-reaction", message_id=message_id, emoji="👍")
    ann.do("add-reaction", message_id=message_id, emoji="👍")
    [item] = ann.items(f"/v1/messages/{message_id}/reactions")
    assert (item["emoji"], item["count"]) == ("👍", 2)
    assert set(item["user_ids"]) == {ann.id, bob.id}


def test_removing_a_reaction_deletes_its_row(liked: Liked) -> None:
    ann, bob, message_id = liked
    data = {"message_id": message_id, "emoji": "👍"}
    bob.do("add-reaction", **data)
    removed = bob.do("remove-reaction", **data)["position"]
    assert bob.do("remove-reaction", **data)["position"] == removed
    assert ann.messenger.rows(ROWS, message_id=message_id) == []
    assert reactions(ann, message_id) == []


def test_nobody_removes_anothers_reaction(liked: Liked) -> None:
    ann, bob, message_id = liked
    bob.do("add-reaction", message_id=message_id, emoji="👍")
    ann.do("remove-reaction", message_id=message_id, emoji="👍")
    assert [one["count"] for one in reactions(bob, message_id)] == [1]


def test_a_user_has_at_most_ten_reactions_to_a_message(liked: Liked) -> None:
    ann, bob, message_id = liked
    bob.do_all(
        *(("add-reaction", {"message_id": message_id, "emoji": f":{n}:"}) for n in range(10))
    )
    more = {"message_id": message_id, "emoji": "👍"}
    assert bob.refused("add-reaction", **more) == "409 conflict"
    ann.do("add-reaction", **more)
    bob.do("remove-reaction", message_id=message_id, emoji=":3:")
    bob.do("add-reaction", **more)


def test_a_reaction_is_an_emoji_or_a_shortcode_of_at_most_32_characters(liked: Liked) -> None:
    ann, bob, message_id = liked
    for good in ("❤️", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪", "#️⃣", ":+1:", ":" + "x" * 30 + ":"):
        bob.do("add-reaction", message_id=message_id, emoji=good)
        assert good in [one["emoji"] for one in ann.message(message_id)["reactions"]]
    for wrong in ("", "x", "👍👍", "ok :+1:", ":" + "x" * 31 + ":"):
        assert bob.refused("add-reaction", message_id=message_id, emoji=wrong) == "400 invalid"


def test_a_deleted_message_loses_its_reactions(liked: Liked) -> None:
    ann, bob, message_id = liked
    bob.do("add-reaction", message_id=message_id, emoji="👍")
    ann.do("delete-message", message_id=message_id)
    assert reactions(ann, message_id) == []
    assert ann.messenger.rows(ROWS, message_id=message_id) == []
