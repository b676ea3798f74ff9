"""What lines become, and that the rules of the messenger accept all of it."""

from datetime import UTC, date, datetime, timedelta
from itertools import count, pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.irc.files import find, load
from api.irc.links import replies
from api.irc.parse import (
    Line,
    Nick,
    Said,
    Unknown,
    nicks_of,
    parse_annotation,
    parse_line,
    parse_log,
)
from api.irc.plan import (
    BRIDGE,
    Day,
    LinePlan,
    Outcome,
    Planner,
    Step,
    display_name,
    first_lines,
)
from api.irc.times import times
from api.irc.usernames import user_id
from commands.add_members import AddMembers
from commands.command import Command
from commands.create_group import CreateGroup
from commands.leave_group import LeaveGroup
from commands.send_message import SendMessage
from domain.chat import MAX_PARTICIPANTS, Chat
from domain.ids import chat_stream, receipt_stream
from domain.message import MAX_CONTENT_CHARACTERS, MessageSent
from domain.refusals import Refusal
from tests.commands.history import History, registered
from tests.irc.sample import EVENING, LATER

IDS = count(1)
DAY = Day("2010-01-04_21", date(2010, 1, 4))

WHO = st.sampled_from(["anna", "b-b", "c[c] ", "d", "e\udcff"])
WORDS = st.text("ab <>[]*=\0\udcff", max_size=6)
CLOCKS = st.builds("[{:02}:{:02}]".format, st.sampled_from([0, 9, 10, 23]), st.integers(0, 59))
LINES = st.one_of(
    st.builds("{} <{}> {}".format, CLOCKS, WHO, WORDS),
    st.builds("{}  * {} {}".format, CLOCKS, WHO, WORDS),
    st.builds("=== {} {}".format, WHO, WORDS),
    st.builds("=== {} [~u@h]  has joined #tea".format, WHO),
    st.builds("=== {} [~u@h]  has left #tea []".format, WHO),
    st.builds("=== {} is now known as {}".format, WHO, WHO),
    st.builds("=== {} changed the topic of #tea to: {}".format, WHO, WORDS),
    st.builds("=== Topic for #tea: {}".format, WORDS),
    WORDS,
)
LOGS = st.lists(LINES, min_size=1, max_size=40).map(
    lambda lines: parse_log("\n".join(lines).encode("utf-8", "surrogateescape"))
)


def log(*lines: str) -> list[Line]:
    return [parse_line(number, line.encode()) for number, line in enumerate(lines, 1)]


def planned(lines: list[Line], answered: dict[int, int] | None = None) -> list[LinePlan]:
    return list(Planner(DAY, lines, answered or {}).line_plans())


def commands(plans: list[LinePlan]) -> list[Command]:
    return [step.command for plan in plans for step in plan.steps]


def done(lines: list[Line], answered: dict[int, int] | None = None) -> History:
    """The day as the domain has it afterwards; nothing may be refused."""
    history = History().record(registered(BRIDGE))
    history.record(*(registered(user_id(nick)) for nick in first_lines(lines)))
    planner = Planner(DAY, lines, answered or {})
    for plan in planner.line_plans():
        for step in plan.steps:
            carry_out(history, step)
    for step in planner.end_of_day():
        carry_out(history, step)
    return history


def carry_out(history: History, step: Step) -> None:
    decision = history.outcome(
        step.command, by=step.actor, new_id=lambda: f"ffffffff-0000-7000-8000-{next(IDS):012x}"
    )
    assert not isinstance(decision, Refusal), f"{step}: {decision}"
    history.record(*decision.events)


def chat(history: History) -> Chat:
    state: Chat = history.state(chat_stream(DAY.chat_id))
    return state


def present(lines: list[Line]) -> set[str]:
    """Who is in at the end, by a rule of its own: who was seen and did not leave after."""
    inside: set[str] = set()
    for line in lines:
        kind = type(line.entry).__name__
        nicks = [*nicks_of(line.entry)]
        is_empty = isinstance(line.entry, Said) and not line.entry.text.replace("\0", "")
        if kind == "Left":
            inside -= {*nicks}
        elif kind == "Renamed" and nicks[0] != nicks[1]:
            inside = inside - {nicks[0]} | {nicks[1]}
        elif kind in ("Said", "Joined", "TopicSet") and not is_empty:
            inside |= {*nicks}
    return inside


@given(LOGS, st.dictionaries(st.integers(1, 40), st.integers(1, 40), max_size=9))
def test_the_domain_accepts_every_plan(lines: list[Line], links: dict[int, int]) -> None:
    annotation = "".join(f"{answered - 1} {line - 1} -\n" for line, answered in links.items())
    answered = replies(lines, parse_annotation(annotation.encode())).answered
    history = done(lines, answered)
    members = {user_id(Nick(nick)) for nick in present(lines)}
    assert set(chat(history).roles) == (members | {BRIDGE} if chat(history).exists else set())


@given(LOGS)
def test_every_line_has_one_plan(lines: list[Line]) -> None:
    plans = planned(lines)
    assert [plan.number for plan in plans] == [line.number for line in lines]
    for line, plan in zip(lines, plans, strict=True):
        assert (plan.outcome == "refused") >= isinstance(line.entry, Unknown)
        assert (plan.outcome == "taken") or plan.reasons
        assert (plan.outcome == "refused") <= (not plan.steps)


@given(LOGS)
def test_every_command_is_one_that_the_api_would_take(lines: list[Line]) -> None:
    for command in commands(planned(lines)):
        assert msgspec.convert(msgspec.to_builtins(command), type(command)) == command


@given(LOGS)
def test_no_two_commands_of_one_actor_share_a_key(lines: list[Line]) -> None:
    planner = Planner(DAY, lines, {})
    steps = [step for plan in planner.line_plans() for step in plan.steps] + planner.end_of_day()
    assert len({(step.actor, step.key) for step in steps}) == len(steps)
    assert all(step.key.isprintable() and len(step.key) <= 128 for step in steps)


@given(LOGS)
def test_time_only_moves_forward(lines: list[Line]) -> None:
    found = list(times(DAY.date, lines))
    assert all(later - earlier >= timedelta(milliseconds=1) for earlier, later in pairwise(found))
    planner = Planner(DAY, lines, {})
    steps = [step for plan in planner.line_plans() for step in plan.steps] + planner.end_of_day()
    assert all(later.at > earlier.at for earlier, later in pairwise(steps) if later.kind != "read")


@given(LOGS)
def test_a_plan_is_a_function_of_the_log(lines: list[Line]) -> None:
    assert planned(lines) == planned(lines)


@given(LOGS)
@example(log("[09:00] <anna> hello", "=== b [~u@h]  has joined #tea"))
def test_at_the_end_everybody_has_read_all(lines: list[Line]) -> None:
    history = done(lines)
    messages = [place.position for event, place in history.log if isinstance(event, MessageSent)]
    for member in chat(history).roles:
        receipt = history.state(receipt_stream(DAY.chat_id, member))
        assert receipt.read_up_to == max(messages, default=0)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_clocks_pass_midnight_and_wait_when_set_back() -> None:
    lines = log(
        "=== anna waves",
        "[23:58] <anna> late",
        "=== anna yawns",
        "[23:58] <anna> later",
        "[00:01] <anna> a new day",
        "[23:59] <anna> and its end",
        "[23:30] <anna> the clock was set back",
        "[00:00] <anna> one more day",
    )
    assert list(times(date(2010, 1, 4), lines)) == [
        at("2010-01-04 23:58:00.000"),
        at("2010-01-04 23:58:00.001"),
        at("2010-01-04 23:58:00.002"),
        at("2010-01-04 23:58:00.003"),
        at("2010-01-05 00:01:00.000"),
        at("2010-01-05 23:59:00.000"),
        at("2010-01-05 23:59:00.001"),
        at("2010-01-06 00:00:00.000"),
    ]


def test_the_first_nick_founds_the_group_with_the_bridge() -> None:
    found = commands(planned(log("[09:00] <anna> hello", "[09:01] <b> hi")))
    assert [type(command) for command in found] == [
        CreateGroup,
        SendMessage,
        AddMembers,
        SendMessage,
    ]
    assert isinstance(found[0], CreateGroup)
    assert (found[0].name, found[0].slug) == ("#ubuntu 2010-01-04", "irc-2010-01-04_21")
    assert found[0].member_ids == [user_id(Nick("anna"))]


def test_who_changes_the_nick_leaves_and_another_joins() -> None:
    plans = planned(log("[09:00] <anna> hello", "=== anna is now known as ann"))
    steps = plans[1].steps
    assert [type(step.command) for step in steps] == [LeaveGroup, AddMembers]
    assert [step.actor for step in steps] == [user_id(Nick("anna")), BRIDGE]


def test_an_action_is_in_italics_from_end_to_end() -> None:
    (_, sent) = commands(planned(log("=== anna waves")))
    assert isinstance(sent, SendMessage)
    assert sent.metadata is not None
    assert sent.metadata.formatting is not None
    assert sent.metadata.formatting.italic == [[0, len("waves")]]


@pytest.mark.parametrize("before", [[], ["=== anna waves"]])
def test_a_topic_is_the_name_of_the_group(before: list[str]) -> None:
    topic = "=== Topic for #tea: " + "hot " * 40
    history = done(log(*before, topic, "[09:00] <b> hi"))
    assert chat(history).name == ("#tea 2010-01-04: " + "hot " * 40)[:100]
    (plan,) = [plan for plan in planned(log(*before, topic)) if plan.number == len(before) + 1]
    assert plan.outcome == "changed"


def test_the_silent_longest_leaves_a_full_group() -> None:
    nicks = [f"nick{number}" for number in range(MAX_PARTICIPANTS + 20)]
    lines = log("[09:00] <nick0> first", *(f"[09:01] <{nick}> hi" for nick in nicks[1:250]))
    lines = [*lines, *log("[09:02] <nick0> still here", *(f"=== {n} waves" for n in nicks[250:]))]
    lines = [line._replace(number=number) for number, line in enumerate(lines, 1)]
    history, plans = done(lines), planned(lines)
    gone = [f"nick{number}" for number in range(1, 22)]
    assert set(chat(history).roles) == {
        BRIDGE,
        *(user_id(Nick(nick)) for nick in nicks if nick not in gone),
    }
    changed = [plan.reasons[0] for plan in plans if plan.outcome == "changed"]
    assert changed == [f"the group is full: {nick}, silent longest, left" for nick in gone]


def test_a_name_is_shown_as_the_nick_as_far_as_a_name_can() -> None:
    assert display_name(Nick("c[c] d")) == ("c[c] d", ())
    assert display_name(Nick("n" * 101))[0] == "n" * 100
    assert display_name(Nick("a\0\udcff"))[0] == "a\N{REPLACEMENT CHARACTER}"


# The sample, line by line; all other lines of it are taken.

REFUSED = [1, 8, 13, 14, 22, 33, 34, 35, 36, 37, 44]
CHANGED = [15, 17, 19, 23, 42, 43, 45]
UNCHANGED = [20, 25, 30, 48]


def outcomes(plans: list[LinePlan], outcome: Outcome) -> list[int]:
    return [plan.number for plan in plans if plan.outcome == outcome]


def sample_plans() -> list[LinePlan]:
    (source,), faults = find([EVENING], [])
    assert faults == []
    content = load(source)
    return list(Planner(source.day, content.lines, content.replies.answered).line_plans())


def test_each_line_of_the_sample_becomes_what_it_should() -> None:
    plans = sample_plans()
    assert outcomes(plans, "refused") == REFUSED
    assert outcomes(plans, "changed") == CHANGED
    assert outcomes(plans, "unchanged") == UNCHANGED
    assert len(outcomes(plans, "taken")) == 49 - len(REFUSED + CHANGED + UNCHANGED)


def sent(number: int) -> Any:
    return sample_plans()[number - 1].steps[-1].command


def test_an_over_long_message_is_cut() -> None:
    assert sent(19).content == ("crumbs " * 1_500)[:MAX_CONTENT_CHARACTERS]


def test_nul_is_taken_out_and_other_control_characters_stay() -> None:
    assert sent(15).content == "zerowidth"
    assert sent(16).content == "bell\x07 tab\t escape\x1b[1m del\x7f"


def test_broken_characters_are_replaced_and_whole_ones_stay() -> None:
    assert sent(17).content == "caf\N{REPLACEMENT CHARACTER} in latin 1"
    assert sent(18).content == "茶はいかがですか? \u00a0ça va"


def test_reply_links_are_kept_where_both_are_messages_and_the_nearest_wins() -> None:
    (source,), _ = find([EVENING], [])
    found = load(source).replies
    assert found.answered == {4: 3, 5: 4, 6: 5, 7: 6, 9: 7, 28: 15, 32: 27, 39: 38}
    assert [link.number for link in found.refused] == [4, 8, 9, 12, 13, 14, 16]


def test_the_annotation_beside_a_log_is_used_unless_another_is_named() -> None:
    assert find([LATER], [])[0][0].annotation == LATER.with_name(
        "2010-01-06.train-x.annotation.txt"
    )
