"""What a day's lines become: each line one `LinePlan`, a pure function of the file alone.

- The day is a group `#channel DATE`, owned by the bridge; the first nick founds it with it.
- A message is a message. `/me` is one in italics. An empty one is refused.
- `has joined`: the bridge adds the nick. `has left`: the nick leaves. What it had read by then
  is not told: a mark would be a guess, and to place it the import would have to stand still.
- A nick that does anything else without being in joins just before, except one that leaves
  after it had left before: that changes nothing, like the joining of one who is in.
- `is now known as`: the old nick leaves, the new one joins. Two nicks are never one user.
- A topic renames the group, cut to what a name holds.
- Where the group is full, the one who was silent longest leaves to make room.
- At the end of the day everybody who is still in has read all.

Ids and idempotency keys are made from the day and the line's number, so that a second run
asks for exactly the same.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal, NamedTuple, assert_never
from uuid import UUID, uuid5

from api.irc.parse import (
    Joined,
    Left,
    Line,
    Nick,
    Renamed,
    Said,
    TopicSet,
    Unknown,
    nicks_of,
    readable,
    shown,
)
from api.irc.times import BETWEEN_LINES, times
from api.irc.usernames import user_id
from commands.add_members import AddMembers
from commands.command import Command
from commands.create_group import CreateGroup
from commands.formatting import Metadata, Styles
from commands.leave_group import LeaveGroup
from commands.mark_read import MarkRead
from commands.send_message import SendMessage
from commands.update_group import UpdateGroup
from domain.chat import MAX_PARTICIPANTS
from domain.ids import ChatId, MessageId, UserId
from domain.message import MAX_CONTENT_CHARACTERS

MAX_NAME_CHARACTERS = 100
BETWEEN_STEPS = timedelta(microseconds=1)
# For logs none of whose lines names their channel.
CHANNEL = "#ubuntu"

# Any fixed UUIDs do; they must never change, or a second import would make everything anew.
DAYS = UUID("0b0ffe0a-6f0e-5d0c-9a55-4c1d6f7a2b02")
BRIDGE = UserId(str(UUID("0b0ffe0a-6f0e-5d0c-9a55-4c1d6f7a2b03")))

Outcome = Literal["taken", "changed", "unchanged", "refused"]


class Step(NamedTuple):
    """A command. `kind` tells how far it may run beside others (importer.Pipeline)."""

    kind: Literal["send", "change", "read"]
    actor: UserId
    command: Command
    at: datetime
    key: str


class LinePlan(NamedTuple):
    """`outcome` holds if none of the steps is refused; `answers` is the line replied to."""

    number: int
    outcome: Outcome
    reasons: tuple[str, ...]
    steps: tuple[Step, ...]
    answers: int | None = None


class Day(NamedTuple):
    """`name` is the file's, without what follows the day: the part that tells days apart."""

    name: str
    date: date

    @property
    def chat_id(self) -> ChatId:
        return ChatId(str(uuid5(DAYS, self.name)))

    @property
    def slug(self) -> str:
        return f"irc-{self.name.replace('.', '-')}"

    def message_id(self, number: int) -> MessageId:
        """A UUIDv7 by day and line, so that rows of neighbouring lines are neighbours."""
        begin = datetime.combine(self.date, time.min, UTC)
        milliseconds = int(begin.timestamp()) * 1000 + number
        random = uuid5(DAYS, f"{self.name}/{number}").int & ((1 << 62) - 1)
        return MessageId(str(UUID(int=milliseconds << 80 | 0x7 << 76 | 0b10 << 62 | random)))


def first_lines(lines: Iterable[Line]) -> dict[Nick, int]:
    """Every nick of a day, in the order of appearance, with its first line."""
    first: dict[Nick, int] = {}
    for line in lines:
        for nick in nicks_of(line.entry):
            first.setdefault(nick, line.number)
    return first


def display_name(nick: Nick) -> tuple[str, tuple[str, ...]]:
    """What people see as the nick's name, and how that differs from the nick."""
    name, changes = readable(nick)
    if len(name) <= MAX_NAME_CHARACTERS:
        return name, changes
    return name[:MAX_NAME_CHARACTERS], (*changes, f"cut to {MAX_NAME_CHARACTERS} characters")


class Planner:
    """Goes through a day once: `line_plans`, then `end_of_day`."""

    def __init__(self, day: Day, lines: list[Line], answered: dict[int, int]) -> None:
        self._day = day
        self._chat_id = day.chat_id
        self._lines = lines
        self._answered = answered
        self._title = f"{_channel(lines)} {day.date}"
        self._name = self._title
        self._is_founded = False
        # Who is in besides the bridge, silent longest first.
        self._members: dict[Nick, None] = {}
        self._seen: set[Nick] = set()
        self._newest: int | None = None
        self._now = datetime.min.replace(tzinfo=UTC)

    def line_plans(self) -> Iterator[LinePlan]:
        for line, at in zip(self._lines, times(self._day.date, self._lines), strict=True):
            self._now = at
            yield self._line_plan(line)

    def end_of_day(self) -> list[Step]:
        command = self._reading()
        if command is None:
            return []
        at = self._now + BETWEEN_LINES
        readers = [BRIDGE, *map(user_id, self._members)]
        key = f"irc/{self._day.name}/{self._lines[-1].number}/end"
        return [Step("read", reader, command, at, key) for reader in readers]

    def _line_plan(self, line: Line) -> LinePlan:
        draft = _Draft(self._day, line.number, self._now)
        for nick in nicks_of(line.entry):
            self._meet(draft, nick)
        match line.entry:
            case Said():
                self._say(draft, line.entry)
            case Joined(nick=nick):
                self._join(draft, nick)
            case Left(nick=nick):
                self._leave(draft, nick)
            case Renamed():
                self._rename(draft, line.entry)
            case TopicSet():
                self._set_topic(draft, line.entry)
            case Unknown(reason=reason):
                draft.refusals.append(reason)
            case _:
                assert_never(line.entry)
        return draft.plan()

    def _meet(self, draft: "_Draft", nick: Nick) -> None:
        """The first line of a nick tells where the name shown is not the nick."""
        if nick not in self._seen:
            draft.changes += [f"name of the user: {what}" for what in display_name(nick)[1]]

    def _say(self, draft: "_Draft", said: Said) -> None:
        text, changes = readable(said.text)
        if not text:
            self._seen.add(said.nick)
            draft.refusals.append("an empty message")
            return
        if len(text) > MAX_CONTENT_CHARACTERS:
            changes += (f"cut to {MAX_CONTENT_CHARACTERS} of {len(text)} characters",)
            text = text[:MAX_CONTENT_CHARACTERS]
        draft.changes += changes
        self._enter(draft, said.nick)
        self._members[said.nick] = self._members.pop(said.nick)
        self._newest = draft.number
        draft.answers = self._answered.get(draft.number)
        draft.add("send", user_id(said.nick), self._message(draft, text, said.is_action))

    def _message(self, draft: "_Draft", text: str, is_action: bool) -> SendMessage:
        day, answers = self._day, draft.answers
        italics = Metadata(formatting=Styles(italic=[[0, len(text)]]))
        return SendMessage(
            chat_id=self._chat_id,
            content=text,
            message_id=day.message_id(draft.number),
            reply_to_id=None if answers is None else day.message_id(answers),
            metadata=italics if is_action else None,
        )

    def _join(self, draft: "_Draft", nick: Nick) -> None:
        if nick in self._members:
            draft.remarks.append("who joins is in already")
        self._enter(draft, nick)

    def _leave(self, draft: "_Draft", nick: Nick) -> None:
        if nick not in self._members and nick in self._seen:
            draft.remarks.append("who leaves is not in")
            return
        self._enter(draft, nick)
        self._exit(draft, nick)

    def _rename(self, draft: "_Draft", renamed: Renamed) -> None:
        if renamed.old == renamed.new:
            draft.remarks.append("the new nick is the old one")
            return
        self._leave(draft, renamed.old)
        self._join(draft, renamed.new)

    def _set_topic(self, draft: "_Draft", topic_set: TopicSet) -> None:
        if topic_set.by is not None:
            self._enter(draft, topic_set.by)
        topic, changes = readable(topic_set.topic)
        name = f"{self._title}: {topic}" if topic else self._title
        if len(name) > MAX_NAME_CHARACTERS:
            changes += (f"name of the group: cut to {MAX_NAME_CHARACTERS} characters",)
        self._rename_group(draft, name[:MAX_NAME_CHARACTERS])
        draft.changes += changes

    def _rename_group(self, draft: "_Draft", name: str) -> None:
        if name == self._name:
            draft.remarks.append("the group is called so already")
        elif self._is_founded:
            draft.add("change", BRIDGE, UpdateGroup(chat_id=self._chat_id, name=name))
        else:
            draft.changes.append("the group is not there yet: it will be founded with this name")
        self._name = name

    def _enter(self, draft: "_Draft", nick: Nick) -> None:
        self._seen.add(nick)
        if nick in self._members:
            return
        # The bridge is a participant too.
        if len(self._members) + 1 >= MAX_PARTICIPANTS:
            silent = next(iter(self._members))
            draft.changes.append(f"the group is full: {shown(silent)}, silent longest, left")
            self._exit(draft, silent)
        self._members[nick] = None
        draft.add("change", BRIDGE, self._admission(user_id(nick)))

    def _admission(self, newcomer: UserId) -> Command:
        if self._is_founded:
            return AddMembers(chat_id=self._chat_id, user_ids=[newcomer])
        self._is_founded = True
        return CreateGroup(
            name=self._name,
            member_ids=[newcomer],
            slug=self._day.slug,
            chat_id=self._chat_id,
        )

    def _exit(self, draft: "_Draft", nick: Nick) -> None:
        del self._members[nick]
        draft.add("change", user_id(nick), LeaveGroup(chat_id=self._chat_id))

    def _reading(self) -> MarkRead | None:
        if self._newest is None:
            return None
        newest = self._day.message_id(self._newest)
        return MarkRead(chat_id=self._chat_id, up_to_message_id=newest)


class _Draft:
    """A line's plan in the making."""

    def __init__(self, day: Day, number: int, at: datetime) -> None:
        self.number = number
        self.answers: int | None = None
        self.refusals: list[str] = []
        self.changes: list[str] = []
        self.remarks: list[str] = []
        self._day = day
        self._at = at
        self._steps: list[Step] = []

    def add(self, kind: Literal["send", "change", "read"], actor: UserId, command: Command) -> None:
        ordinal = len(self._steps) + 1
        key = f"irc/{self._day.name}/{self.number}/{ordinal}"
        at = self._at + (ordinal - 1) * BETWEEN_STEPS
        self._steps.append(Step(kind, actor, command, at, key))

    def plan(self) -> LinePlan:
        outcome = self._outcome()
        reasons = (*self.refusals, *self.changes, *self.remarks)
        return LinePlan(self.number, outcome, reasons, tuple(self._steps), self.answers)

    def _outcome(self) -> Outcome:
        if self.refusals:
            return "refused"
        if self.changes:
            return "changed"
        return "taken" if self._steps else "unchanged"


def _channel(lines: Iterable[Line]) -> str:
    """The first channel that a line names, in lower case as channels have no case."""
    for line in lines:
        if isinstance(line.entry, Joined | Left | TopicSet):
            return readable(line.entry.channel)[0].lower()
    return CHANNEL
