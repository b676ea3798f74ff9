"""The view and the context that decisions are made of."""

from collections.abc import Callable
from itertools import count

import pytest

from commands import HANDLERS
from commands.command import Context, Missing, PasswordHash, Versioned, View
from domain.chat import Chat
from domain.ids import chat_stream, message_stream, user_stream
from domain.message import Message
from domain.user import User
from tests.commands.history import ANNA, BEN, CARL, CHAT, NOW, message_id


def numbers() -> Callable[[], str]:
    counter = count()
    return lambda: str(next(counter))


def test_an_id_is_the_same_each_time_it_is_asked_for() -> None:
    context = Context(ANNA, NOW, numbers())
    assert [context.id(1), context.id(0), context.id(1)] == ["1", "0", "1"]


def test_a_command_without_a_caller_has_no_actor() -> None:
    with pytest.raises(AssertionError):
        _ = Context(None, NOW, numbers()).actor


def test_what_a_view_lacks_is_asked_for() -> None:
    with pytest.raises(Missing) as missing:
        View({}, {}).chat(CHAT)
    assert missing.value.streams == (chat_stream(CHAT),)


def test_many_users_are_asked_for_at_once_without_those_that_are_there() -> None:
    view = View({user_stream(BEN): Versioned(1, User())}, {})
    with pytest.raises(Missing) as missing:
        view.users([ANNA, BEN, CARL])
    assert missing.value.streams == (user_stream(ANNA), user_stream(CARL))
    assert view.used == {}


def test_a_fact_that_is_not_there_is_asked_for() -> None:
    fact = PasswordHash("correct horse")
    with pytest.raises(Missing) as missing:
        View({}, {}).fact(fact)
    assert missing.value.fact == fact
    assert View({}, {fact: "x"}).fact(fact) == "x"


def test_what_was_looked_at_is_guarded_at_the_version_that_was_seen() -> None:
    view = View({chat_stream(CHAT): Versioned(7, Chat(exists=True))}, {})
    assert view.chat(CHAT).exists
    assert view.new_message(message_id(1)) == Message()
    assert view.used == {chat_stream(CHAT): 7, message_stream(message_id(1)): 0}


def test_a_presumed_new_thing_that_is_known_is_seen_as_it_is() -> None:
    known = Message(exists=True)
    view = View({message_stream(message_id(1)): Versioned(2, known)}, {})
    assert view.new_message(message_id(1)) is known
    assert view.used == {message_stream(message_id(1)): 2}


def test_only_registering_needs_no_caller() -> None:
    assert [handler.name for handler in HANDLERS if not handler.needs_actor] == ["register-user"]
