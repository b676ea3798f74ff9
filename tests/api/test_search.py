"""Search: what is found, by whom, what is shown of it, and paging through all of it."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.queries import search, search_text
from projections import BY_NAME, PROJECTIONS
from projections import search as projection
from tests.api.served import PASSWORD, Api, Json, Person, problem
from tests.infra.daemons import connected, projected, projecting

SEARCH = "/v1/search/messages"


@pytest.fixture
async def people(whole_api: Api) -> tuple[Person, Person, Person]:
    ann, bob, eve = [await whole_api.person(name) for name in ("ann", "bob", "eve")]
    return ann, bob, eve


async def group(owner: Person, *members: Person) -> str:
    ids = [member.user_id for member in members]
    created = await owner.do("create-group", name="Friends", member_ids=ids)
    chat_id: str = created["chat_id"]
    return chat_id


async def say(sender: Person, chat_id: str, *contents: str) -> list[Json]:
    return [
        await sender.do("send-message", chat_id=chat_id, content=content) for content in contents
    ]


async def found(person: Person, q: str, after: int = 0, /, **parameters: Any) -> list[str]:
    answer = await person.see(SEARCH, after, q=q, **parameters)
    return sorted(item["message"]["content"] for item in answer["items"])


def highlighted(item: Json) -> list[str]:
    return [item["snippet"][start:end] for start, end in item["highlights"]]


async def test_an_item_is_a_message_with_its_rank_and_a_snippet(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [sent] = await say(ann, chat_id, "We were running & <b>jumping</b>")
    answer = await bob.see(SEARCH, sent["position"], q="run jumps")
    [item] = answer["items"]
    assert set(item) == {"message", "rank", "snippet", "highlights"}
    assert answer["next_cursor"] is None
    assert item["message"] == await bob.see(f"/v1/messages/{sent['message_id']}")
    assert item["rank"] > 0
    assert item["snippet"] == "We were running & <b>jumping</b>"
    assert highlighted(item) == ["running", "jumping"]


async def test_words_are_found_as_web_searches_do(people: tuple[Person, Person, Person]) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [*_, last] = await say(
        ann,
        chat_id,
        "red apples and green pears",
        "green apples, red pears",
        "a pear-tree: see https://example.com/trees",
        "Cafés in ZÜRICH",
        "I ❤️ this 👍🏽",
    )
    at = last["position"]
    assert await found(bob, "apple", at) == [
        "green apples, red pears",
        "red apples and green pears",
    ]
    assert await found(bob, '"red apple"') == ["red apples and green pears"]
    assert await found(bob, 'apple -"red apple"') == ["green apples, red pears"]
    assert await found(bob, "tree or zurich") == [
        "Cafés in ZÜRICH",
        "a pear-tree: see https://example.com/trees",
    ]
    assert await found(bob, "pear-tree") == await found(bob, "example.com")
    assert await found(bob, "tree-pear") == []
    assert await found(bob, "CAFE\u0301") == ["Cafés in ZÜRICH"]
    assert await found(bob, "👍") == await found(bob, "❤") == ["I ❤️ this 👍🏽"]


TEXTS = (
    "日本語を勉強する",
    "今日は東京タワーへ",
    "北京大学的学生",
    "ภาษาไทยไม่มีช่องว่าง",
    "학교에서 만나요",
    "deploy を 本番 に v2 した",
)


PARTS = (
    ("日本語", ["日本語を勉強する"]),
    ("本語を勉", ["日本語を勉強する"]),
    ("語", ["日本語を勉強する"]),
    ("る", ["日本語を勉強する"]),
    ("京", ["今日は東京タワーへ", "北京大学的学生"]),
    ("北京", ["北京大学的学生"]),
    ("京北", []),
    ("学生 北京", ["北京大学的学生"]),
    ("ﾀﾜｰ", ["今日は東京タワーへ"]),
    ("ไทย", ["ภาษาไทยไม่มีช่องว่าง"]),
    ("ว่าง", ["ภาษาไทยไม่มีช่องว่าง"]),
    ("학교", ["학교에서 만나요"]),
    ("deployed 本番", ["deploy を 本番 に v2 した"]),
    ('"本番 に v2"', ["deploy を 本番 に v2 した"]),
    ("本 -番", ["日本語を勉強する"]),
)


async def test_text_without_spaces_is_found_by_any_part_of_it(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [*_, last] = await say(ann, chat_id, *TEXTS)
    for q, expected in PARTS:
        assert await found(bob, q, last["position"]) == sorted(expected), q


async def test_matches_are_shown_in_any_script(people: tuple[Person, Person, Person]) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    long = "x " * 400 + "das Wörterbuch, 東京タワー!" + " y" * 400
    [*_, last] = await say(ann, chat_id, long)
    for q, expected in (
        ("wörterbuch", ["Wörterbuch"]),
        ("東京タ", ["東京タ"]),
        ("ワ", ["ワ"]),
        ("ー", ["ー"]),
        ("WORTERBUCH ワー", ["Wörterbuch", "ワー"]),
    ):
        answer = await bob.see(SEARCH, last["position"], q=q)
        [item] = answer["items"]
        assert highlighted(item) == expected
        assert len(item["snippet"]) <= search_text.MAX_SNIPPET_CHARACTERS + 2
        assert item["snippet"].startswith("…x ")


async def test_only_those_find_who_are_in_the_chat(people: tuple[Person, Person, Person]) -> None:
    ann, bob, eve = people
    ours, theirs = await group(ann, bob, eve), await group(ann, bob)
    await say(ann, ours, "a secret of us")
    [sent] = await say(ann, theirs, "a secret of them")
    assert await found(bob, "secret", sent["position"]) == ["a secret of them", "a secret of us"]
    assert await found(bob, "secret", chat_id=ours) == ["a secret of us"]
    assert await found(eve, "secret") == ["a secret of us"]
    problem(await eve.look(SEARCH, q="secret", chat_id=theirs), 404, "not-found")
    problem(await eve.look(SEARCH, q="secret", chat_id=str(uuid4())), 404, "not-found")
    done = await eve.do("leave-group", chat_id=ours)
    assert await found(eve, "secret", done["position"]) == []
    problem(await eve.look(SEARCH, q="secret", chat_id=ours), 404, "not-found")
    done = await ann.do("add-members", chat_id=ours, user_ids=[eve.user_id])
    assert await found(eve, "secret", done["position"]) == ["a secret of us"]
    done = await ann.do("delete-group", chat_id=ours)
    assert await found(eve, "secret", done["position"]) == []


async def test_an_edited_message_is_found_by_what_it_says_now(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [sent] = await say(ann, chat_id, "wednesday")
    done = await ann.do("edit-message", message_id=sent["message_id"], content="thursday")
    assert await found(bob, "wednesday", done["position"]) == []
    assert await found(bob, "thursday", chat_id=chat_id) == ["thursday"]


async def test_what_is_deleted_erased_or_of_the_system_is_never_found(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, eve = people
    chat_id = await group(ann, bob, eve)
    [gone, _] = await say(bob, chat_id, "plums gone", "plums stay")
    [kept] = await say(eve, chat_id, "plums of eve")
    await bob.do("delete-message", message_id=gone["message_id"])
    assert await found(ann, "plums", kept["position"] + 1) == ["plums of eve", "plums stay"]
    await eve.do("delete-account", password=PASSWORD, erase_messages=True)
    done = await bob.do("update-profile", display_name="Bob")
    assert await found(ann, "plums", done["position"]) == ["plums stay"]
    assert await found(ann, "left group joined") == await found(ann, "deleted") == []


async def test_a_message_deleted_before_the_index_knows_is_not_shown(api: Api) -> None:
    """Only the other projections run: search is kept where it was."""
    url, nats_url = api.parts.settings.database_url, api.parts.settings.nats_url
    assert url is not None
    assert nats_url is not None
    ann, bob = await api.person("ann"), await api.person("bob")
    chat_id = await group(ann, bob)
    [sent] = await say(ann, chat_id, "here today")
    async with projecting(url, nats_url, [BY_NAME["search"]]):
        await projected(url, ["search"])
    others = [one for one in PROJECTIONS if one.name != "search"]
    async with projecting(url, nats_url, others):
        await projected(url, [one.name for one in others])
        assert await found(bob, "today") == ["here today"]
        await ann.do("delete-message", message_id=sent["message_id"])
        await projected(url, [one.name for one in others])
        assert await found(bob, "today") == []


TYPED = (
    "the",
    "-apple",
    "or",
    '"',
    "!!! & | ( ) :* <->",
    "';' DROP TABLE messages --",
    "\\'",
    "x'y\"z",
    "chat:x",
    "%",
    "a" * 200,
    "漢" * 200,
    "-" * 200,
    '"' * 200,
    "or or -or",
    "😀" * 200,
)


async def test_nothing_typed_is_an_error(people: tuple[Person, Person, Person]) -> None:
    ann, bob, _ = people
    [sent] = await say(ann, await group(ann, bob), "hello")
    for q in TYPED:
        assert await found(ann, q, sent["position"]) == [], q


async def test_nothing_reaches_the_words_of_the_index_itself(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, eve = people
    chat_id = await group(ann, bob)
    [sent] = await say(ann, chat_id, "hello")
    await group(eve, bob)
    for q in (f"chat:{chat_id}", f"'chat:{chat_id}'", f"from:{ann.user_id}", "block:14:0"):
        assert await found(bob, q, sent["position"]) == []
        assert await found(eve, q, sent["position"]) == []


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "q"),
    ({"q": ""}, "q"),
    ({"q": " \t"}, "q"),
    ({"q": "x" * 201}, "q"),
    ({"q": "x\0"}, "q"),
    ({"q": "x", "limit": 0}, "limit"),
    ({"q": "x", "limit": 51}, "limit"),
    ({"q": "x", "chat_id": "no id"}, "chat_id"),
    ({"q": "x", "cursor": "no cursor"}, "cursor"),
    ({"q": "x", "cursor": "W10"}, "cursor"),
    ({"q": "x", "cursor": "WzEsMiwzXQ"}, "cursor"),
)


async def test_what_can_not_be_searched_for_is_refused(whole_api: Api) -> None:
    ann = await whole_api.person("ann")
    for parameters, field in REFUSED:
        answer = problem(await ann.look(SEARCH, 0, **parameters), 400, "invalid")
        assert [error["field"] for error in answer["errors"]] == [field], parameters


async def test_a_cursor_is_of_one_search(people: tuple[Person, Person, Person]) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [*_, last] = await say(ann, chat_id, "plum", "plum", "pear")
    first = await bob.see(SEARCH, last["position"], q="plum", limit=1)
    cursor = first["next_cursor"]
    assert (await bob.see(SEARCH, q="plum", cursor=cursor))["next_cursor"] is None
    problem(await bob.look(SEARCH, q="pear", cursor=cursor), 400, "invalid")
    problem(await bob.look(SEARCH, q="plum", chat_id=chat_id, cursor=cursor), 400, "invalid")


# By the index with the chats in it; by the index alone; by the messages of the chats.
WAYS = ({}, {"FEW_CHATS": 0, "FEW_MESSAGES": -1}, {"FEW_CHATS": 0})
# However slow it is: windows end early, and pages go on inside of them.
SLOW = {"WINDOW_SECONDS": -1, "CANDIDATES": 50}


@pytest.mark.parametrize("way", [*WAYS, SLOW])
async def test_pages_reach_every_match_once_the_best_of_a_window_first(
    people: tuple[Person, Person, Person], monkeypatch: pytest.MonkeyPatch, way: dict[str, int]
) -> None:
    """Windows of 7 matches and blocks of 4 positions, while messages are sent and deleted."""
    for name, value in {
        "CANDIDATES": 7,
        "BLOCK_BITS": (2, 3),
        "FIRST_POSITIONS": 4,
        **way,
    }.items():
        monkeypatch.setattr(search, name, value)
    monkeypatch.setattr(projection, "BLOCK_BITS", (2, 3))
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    sent = await say(
        ann, chat_id, *(f"plum {n} " + "plum " * (n % 4) + "and " * (n % 3) for n in range(40))
    )
    await say(ann, chat_id, *("pear" for _ in range(5)))
    expected = {message["message_id"] for message in sent[:-1]}
    pages: list[list[Json]] = []
    cursor, at = None, sent[-1]["position"]
    while cursor is not None or not pages:
        more = {} if cursor is None else {"cursor": cursor}
        answer = await bob.see(SEARCH, at, q="plum", limit=3, **more)
        pages.append(answer["items"])
        cursor = answer["next_cursor"]
        if len(pages) == 2:
            await say(ann, chat_id, "another plum")
            gone = sent[0]["message_id"]
            at = (await ann.do("delete-message", message_id=gone))["position"]
            expected.discard(gone)
    expected.add(sent[-1]["message_id"])
    seen = [item["message"]["id"] for page in pages for item in page]
    assert sorted(seen) == sorted(expected)
    if way == SLOW:
        return
    first_window = [item for page in pages[:3] for item in page]
    assert len(first_window) == 7
    ranks = [(item["rank"], item["message"]["position"]) for item in first_window]
    assert ranks == sorted(ranks, reverse=True)
    newest = sorted(message["position"] for message in sent)[-7:]
    assert sorted(position for _, position in ranks) == newest


async def test_a_search_that_takes_too_long_ends_and_nothing_stays_behind(
    people: tuple[Person, Person, Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [sent] = await say(ann, chat_id, "plum")
    assert await found(bob, "plum", sent["position"]) == ["plum"]
    slow = search.MATCHES.replace("FROM message_search", "FROM pg_sleep(600), message_search")
    assert slow != search.MATCHES
    with monkeypatch.context() as patch:
        patch.setattr(search, "MATCHES", slow)
        patch.setattr(search, "TIMEOUT_SECONDS", 0.2)
        answers = await asyncio.gather(*(bob.look(SEARCH, q="plum") for _ in range(12)))
    for answer in answers:
        refused = problem(answer, 503, "unavailable")
        assert "took more than 0.2 s" in refused["detail"]
        assert answer.headers["retry-after"]
    assert await found(bob, "plum") == ["plum"]
    assert (await bob.see("/v1/users/me"))["username"] == "bob"


async def test_a_search_that_can_not_move_stops_neither_sends_nor_other_read_models(
    whole_api: Api, people: tuple[Person, Person, Person]
) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [sent] = await say(ann, chat_id, "plum")
    await bob.see(SEARCH, sent["position"], q="plum")
    url = whole_api.parts.settings.database_url
    assert url is not None
    async with connected(url) as connection:
        async with connection.transaction():
            await connection.execute("LOCK TABLE message_search IN SHARE MODE")
            [*_, last] = await say(ann, chat_id, "plum", "plum")
            page = await bob.see(f"/v1/chats/{chat_id}/messages", last["position"])
            unread = await bob.see("/v1/unread", last["position"])
            # A query that waited for the search would be told that it is behind: the lock stands.
            assert len(page["items"]) == unread["messages"] == 3
            # What is there can be searched; what is not there yet is waited for, not made up.
            assert await found(bob, "plum") == ["plum"]
        assert await found(bob, "plum", last["position"]) == ["plum"] * 3


# Below: what needs no server


@given(st.text(max_size=60), st.lists(st.integers(1, 80), max_size=20).map(sorted), st.text())
def test_a_snippet_is_short_and_its_highlights_are_inside(
    content: str, places: list[int], beginnings: str
) -> None:
    for text in (content, content * 20):
        part = search_text.snippet(text, places, list(beginnings))
        assert len(part.snippet) <= search_text.MAX_SNIPPET_CHARACTERS + 2
        assert part.snippet.strip("…") in text
        ends = [0, *(end for _, end in part.highlights)]
        for (start, end), last_end in zip(part.highlights, ends, strict=False):
            assert last_end <= start < end <= len(part.snippet)
