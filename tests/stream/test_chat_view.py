"""What the client knows and says: the pure part of `messenger chat`.

The law here is of one chat: whatever page is read, and whichever events that it holds already come
again after it, what is known at the end is what a page read at the end tells.
"""

from datetime import UTC
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.chat import typed
from api.chat.conversation import MAX_MESSAGES
from api.chat.editing import MAX_LINE_CHARACTERS, Editor
from api.chat.terminal import Plain
from api.chat.view import View
from api.chat.wording import mark, numbers, sentence, shown
from tests.stream.told import ANN, BOB, CHAT, EVE, PEOPLE, Told

Json = dict[str, Any]

WHICH = st.integers(0, 3)
SENT = [("send", ANN), ("send", BOB), ("send", ANN)]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from(PEOPLE)),
        st.tuples(st.sampled_from(["reply", "edit", "delete"]), WHICH),
        st.tuples(st.sampled_from(["react", "unreact"]), WHICH, st.sampled_from(PEOPLE)),
        st.tuples(st.sampled_from(["deliver", "read"]), WHICH, st.sampled_from([BOB, EVE])),
        st.tuples(st.sampled_from(["leave", "join"])),
    ),
    min_size=5,
    max_size=30,
).map(lambda steps: [*SENT, *steps])
MANY = settings(max_examples=100)


def opened(told: Told, position: int, page: int) -> View:
    """As of a position; the page may be newer."""
    view = View(ANN, UTC)
    view.begin(told.state(position))
    view.show(CHAT, told.members(page), told.page(page))
    return view


def known(view: View) -> Any:
    conversation = view.open
    return conversation and (
        conversation.members,
        conversation.last_number,
        [
            {
                **vars(one),
                "reactions": {emoji: set(who) for emoji, who in one.reactions.items()},
                "line": view.line(one.id),
            }
            for one in conversation.messages.values()
        ],
    )


@MANY
@given(STEPS, st.data())
def test_a_page_and_the_events_after_a_position_are_a_later_page(
    steps: list[Any], data: st.DataObject
) -> None:
    told = Told.of(steps)
    began = data.draw(st.integers(told.first, told.last))
    page = data.draw(st.integers(began, told.last))
    view = opened(told, began, page)
    for event in told.events:
        view.reduce(event)
        view.reduce(event)
    assert known(view) == known(opened(told, told.last, told.last))
    assert view.position == max(began, told.last)


def test_a_page_that_has_an_end_already_is_not_taken_back_by_what_led_to_it() -> None:
    told = Told.of([*SENT, ("react", 0, BOB), ("edit", 0), ("unreact", 0, BOB), ("delete", 0)])
    view = opened(told, told.last - 4, told.last)
    for event in told.events:
        view.reduce(event)
    assert known(view) == known(opened(told, told.last, told.last))


@MANY
@given(STEPS, st.data())
def test_each_message_is_said_once_also_if_all_is_read_again_on_the_way(
    steps: list[Any], data: st.DataObject
) -> None:
    told = Told.of(steps)
    again = data.draw(st.integers(told.first, told.last))
    view = View(ANN, UTC)
    view.begin(told.state(told.first))
    lines = view.show(CHAT, told.members(told.first), told.page(told.first))
    for event in told.events:
        if event["position"] <= again - 3:
            lines += view.reduce(event)
    view.begin(told.state(again))
    lines += view.show(CHAT, told.members(again), told.page(again))
    for event in told.events:
        lines += view.reduce(event)
    said = [line.message_id for line in lines if line.message_id]
    assert said == [row["id"] for row in told.page(told.last)]


def test_what_is_said_of_a_conversation() -> None:
    told = Told()
    view = opened(told, told.last, told.last)
    for step in (
        ("send", ANN),
        ("deliver", 0, BOB),
        ("read", 0, EVE),
        ("read", 0, BOB),
        ("reply", 0),
        ("react", 1, ANN),
        ("edit", 1),
        ("delete", 0),
        ("leave",),
    ):
        told.do(*step)
    said = [line.text for event in told.events for line in view.reduce(event)]
    assert said == [
        "* Wednesday, 1 April 2026",
        "#1 10:00 Ann: text 1 (sent)",
        "* #1 delivered to 1 of 2",
        "* #1 read by 1 of 2",
        "* #1 read by 2 of 2",
        "#2 10:00 Bob (to #1 Ann: text 1): text 2",
        "* #2 Ann reacts 👍",
        "* #2 Bob edited: edited at 8",
        "* #1 was deleted by Ann",
        "#3 10:00 - Eve left",
    ]
    later = [view.line(one.id) for one in view.open.messages.values()] if view.open else []
    assert [line.text for line in later if line] == [
        "#1 10:00 Ann: [Deleted]",
        "#2 10:00 Bob (to #1 Ann: [Message Deleted]): edited at 8 (edited) [👍 1]",
        "#3 10:00 - Eve left",
    ]


def test_numbers_go_on_where_the_page_ends() -> None:
    told = Told.of([*SENT])
    view = View(ANN, UTC)
    view.begin(told.state(told.last))
    view.show(CHAT, told.members(told.last), told.page(told.last)[-1:])
    told.do("send", BOB)
    assert [line.text for line in view.reduce(told.events[-1])] == ["#4 10:00 Bob: text 4"]
    first, fourth = view.numbered(1), view.numbered(4)
    assert (first, fourth and fourth.content) == (None, "text 4")


def test_what_is_shown_is_to_be_read_once() -> None:
    told = Told.of([*SENT])
    view = opened(told, told.last, told.last)
    assert view.to_be_read() == (CHAT, told.page(told.last)[1]["id"])
    told.do("send", ANN)
    view.reduce(told.events[-1])
    assert view.to_be_read() is None, "one's own is never unread"
    view.begin(told.state(told.last))
    view.show(CHAT, told.members(told.last), told.page(told.last))
    assert view.to_be_read() is None, "it was told before the chat was read again"
    told.do("send", EVE)
    view.reduce(told.events[-1])
    assert view.to_be_read() == (CHAT, told.page(told.last)[-1]["id"])


def test_the_names_are_those_of_the_day() -> None:
    told = Told.of([("send", BOB)])
    view = opened(told, told.last, told.last)
    changed = {"user_id": BOB, "display_name": "Robert", "avatar_url": None}
    lines = view.reduce(told.frame("profile_updated", changed))
    assert [line.text for line in lines] == ["* Bob is called Robert now"]
    gone = {"user_id": BOB, "display_name": "[Deleted User]", "erase_messages": True}
    view.reduce(told.frame("account_deleted", gone))
    message = next(iter(view.open.messages.values())) if view.open else None
    assert message
    line = view.line(message.id)
    assert line
    assert line.text == "#1 10:00 [Deleted User]: [Deleted]"


def test_what_is_said_elsewhere_is_counted_once() -> None:
    told = Told()
    view = View(ANN, UTC)
    view.begin(told.state(told.last))
    told.do("send", BOB)
    told.do("send", ANN)
    told.do("send", EVE)
    for event in told.events:
        view.reduce(event)
        view.reduce(event)
    assert view.chats[CHAT].unread == 2
    # How much of it another device has read can't be known from the mark alone.
    read = {"user_id": ANN, "delivered_up_to": told.last, "read_up_to": told.last}
    view.reduce(told.frame("messages_read", {"chat_id": CHAT, "marks": [read]}))
    assert view.stale == {CHAT}
    view.know({**told.chat(), "unread_count": 0}, told.last)
    assert (view.stale, view.chats[CHAT].unread) == (set(), 0)


def test_a_chat_that_is_new_is_asked_for_and_one_that_is_left_is_forgotten() -> None:
    told = Told()
    view = View(ANN, UTC)
    view.begin({**told.state(told.last), "chats": []})
    added = {"chat_id": CHAT, "by": BOB, "user_ids": [ANN]}
    assert view.reduce(told.frame("members_added", added)) == []
    assert view.stale == {CHAT}
    assert [one.text for one in view.know(told.chat(), told.last)] == [
        "* new chat: Friends (friends)"
    ]
    removed = {"chat_id": CHAT, "by": BOB, "user_id": ANN}
    lines = view.reduce(told.frame("member_removed", removed))
    assert [one.text for one in lines] == ["* Friends is without you from now on"]
    assert (view.chats, view.stale) == ({}, set())


def test_events_of_a_later_version_change_nothing() -> None:
    told = Told.of([("send", BOB)])
    view = opened(told, told.last, told.last)
    before = known(view)
    for kind in ("something_new", "contact_frowned_at"):
        who = {"user_id": BOB, "contact_id": ANN, "contact": None}
        assert view.reduce(told.frame(kind, who)) == []
    assert known(view) == before


def test_only_so_many_messages_are_kept() -> None:
    told = Told()
    view = opened(told, told.last, told.last)
    told.do("send", BOB)
    (sent,) = told.events
    for number in range(1, MAX_MESSAGES + 6):
        data = {**sent["data"], "message_id": f"message {number}"}
        view.reduce({**sent, "position": told.first + number, "data": data})
    assert view.open
    numbers_kept = [one.number for one in view.open.messages.values()]
    assert numbers_kept == list(range(6, MAX_MESSAGES + 6))


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("two\nlines", "two\n    lines"),
        ("\x1b[2Jclear\x07", "\ufffd[2Jclear\ufffd"),
        ("turned \u202eround", "turned \ufffdround"),
        ("a\ttab", "a tab"),
        ("👩‍👩‍👧 naïve 日本", "👩‍👩‍👧 naïve 日本"),
        ("carriage\rreturn", "carriage\n    return"),
    ],
)
def test_what_others_write_can_not_play_with_the_terminal(text: str, seen: str) -> None:
    assert shown(text) == seen


@given(st.text())
def test_no_line_of_a_message_looks_like_another_message(text: str) -> None:
    first, *others = shown(text).split("\n")
    assert all(line.startswith("    ") for line in others)
    assert not any(ord(one) < 32 or 127 <= ord(one) < 160 for one in "".join([first, *others]))


def test_system_messages_are_sentences() -> None:
    names = {ANN: "Ann", BOB: "Bob", EVE: "Eve"}

    def said(kind: str, *user_ids: str, **fields: str) -> str:
        told = {"kind": kind, "actor_id": ANN, "user_ids": list(user_ids), **fields}
        return sentence(told, lambda one: names.get(one or "", "somebody"))

    assert said("members_added", BOB, EVE) == "Ann added Bob and Eve"
    assert said("members_added", *[BOB] * 7) == "Ann added Bob, Bob, Bob, Bob, Bob and 2 others"
    assert said("member_removed", BOB) == "Ann removed Bob"
    assert said("member_left", ANN) == "Ann left"
    assert said("group_renamed", name="New\nname") == "Ann named the group New name"
    assert said("ownership_transferred", BOB) == "Bob owns the group now"
    assert said("admin_appointed", BOB) == "Ann made Bob an admin"
    assert said("admin_dismissed", BOB) == "Bob is no admin any more"
    assert said("of_a_later_version") == "Ann: of a later version"


def test_marks_count_where_there_are_several_to_count() -> None:
    assert mark([]) == mark(["sent", "sent"]) == "sent"
    assert mark(["delivered"]) == "delivered"
    assert mark(["delivered", "sent"]) == "delivered to 1 of 2"
    assert mark(["read", "delivered", "sent"]) == "read by 1 of 3"
    assert (numbers([4]), numbers([4, 5, 7])) == ("#4", "#4 to #7")


@pytest.mark.parametrize(
    ("line", "order"),
    [
        ("", None),
        ("   ", None),
        ("Hello", typed.Say("Hello")),
        ("//chats", typed.Say("/chats")),
        ("/reply 12 well then", typed.Reply(12, "well then")),
        ("/reply #12 well then", typed.Reply(12, "well then")),
        ("/EDIT 1 x", typed.Edit(1, "x")),
        ("/delete 3", typed.Delete(3)),
        ("/react 3 👍", typed.React(3, "👍", True)),
        ("/unreact 3 👍", typed.React(3, "👍", False)),
        ("/open My group", typed.Open("My group")),
        ("/contact bob", typed.Contact("bob")),
        ("/chats", typed.ListChats()),
        ("/who", typed.Who()),
        ("/help", typed.Help()),
        ("/quit", typed.Quit()),
    ],
)
def test_a_line_is_said_or_asks_for_something(line: str, order: typed.Order | None) -> None:
    assert typed.parse(line) == order


@pytest.mark.parametrize(
    "line",
    [
        *("/reply", "/reply 1", "/reply x y", "/edit 1", "/delete", "/delete 1 now", "/react 1"),
        *("/open", "/contact", "/quit now", "/nonsense", "/", "/delete 1234567890", "/delete ²"),
    ],
)
def test_an_order_that_is_none_is_refused_and_said_to_nobody(line: str) -> None:
    assert isinstance(typed.parse(line), typed.Wrong)


@given(st.text())
def test_any_line_can_be_typed(line: str) -> None:
    typed.parse(line)


def edited(keys: str) -> tuple[list[str], str]:
    editor = Editor()
    return editor.feed(keys), editor.text


@pytest.mark.parametrize(
    ("keys", "result"),
    [
        ("one\rtwo", (["one"], "two")),
        ("a\nb\n", (["a", "b"], "")),
        ("wrong\x7f\x7fte", ([], "wrote")),
        ("\x7f\x7f", ([], "")),
        ("all of it\x15none", ([], "none")),
        ("two words\x17", ([], "two")),
        ("ar\x1b[Arow\x1b[1;5C\x1bOP", ([], "arrow")),
        ("a\x00\x01b", ([], "ab")),
    ],
)
def test_a_line_is_edited(keys: str, result: tuple[list[str], str]) -> None:
    assert edited(keys) == result


def test_the_end_is_only_on_an_empty_line_and_a_line_has_an_end() -> None:
    editor = Editor()
    editor.feed("text\x04")
    assert not editor.is_ended
    editor.feed("\x15\x04")
    assert editor.is_ended
    assert len(edited("x" * (MAX_LINE_CHARACTERS + 9))[1]) == MAX_LINE_CHARACTERS


@given(st.lists(st.text(st.characters(exclude_characters="\n"), max_size=9), max_size=5), st.data())
def test_a_pipe_gives_the_same_lines_however_it_is_cut(
    lines: list[str], data: st.DataObject
) -> None:
    text = "\n".join(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    plain = Plain()
    taken = [line for piece in pieces if piece for line in plain.take(piece)]
    assert [*taken, *plain.take("")] == (lines or [""])
    assert plain.is_ended


def test_a_pipe_without_an_end_of_line_is_not_kept_for_ever(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = Plain()
    assert plain.take("x" * (MAX_LINE_CHARACTERS + 1)) == []
    assert "is left out" in capsys.readouterr().out
    assert plain.take("\nnext\n") == ["", "next"]
