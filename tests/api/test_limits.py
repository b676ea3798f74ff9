"""The README's tables of limits say what the code does."""

from pathlib import Path

import pytest

from api import commands as batches
from api import http, read_models, sessions
from api.queries import chats, contacts, messages, search, state, users
from commands import add_reaction, emoji, formatting
from commands.command import MAX_PASSWORD_BYTES, MIN_PASSWORD_BYTES
from domain.chat import MAX_PARTICIPANTS
from domain.message import MAX_CONTENT_CHARACTERS
from infra import database, login_limits, passwords
from infra.sessions import MAX_SESSIONS_OF_USER
from infra.settings import load

README = " ".join((Path(__file__).parents[2] / "README.md").read_text().split())
LIMITS = README.partition("## Limits")[2].partition("## Operations")[0]
SETTINGS = load({}, needs=(), looks_for_running=False)


def page(default: int, most: int) -> str:
    return f"{default} and {most}"


STATED = (
    f"{batches.MAX_COMMAND_BYTES:,} bytes; {batches.MAX_BATCH_BYTES:,}; {sessions.MAX_BODY_BYTES:,}",
    f"commands in a batch | 1 to {batches.MAX_BATCH_COMMANDS} |",
    f"{http.MAX_QUERY_PARAMETERS}; {batches.MAX_KEY_CHARACTERS} characters |",
    f"messages, chats | {messages.DEFAULT_LIMIT} by default, {messages.MAX_LIMIT} at most",
    f"messages, chats | {chats.DEFAULT_LIMIT} by default, {chats.MAX_LIMIT} at most",
    (
        f"contacts | {page(users.DEFAULT_LIMIT, users.MAX_LIMIT)}; "
        f"{page(search.DEFAULT_LIMIT, search.MAX_LIMIT)}; "
        f"{page(contacts.DEFAULT_LIMIT, contacts.MAX_LIMIT)} |"
    ),
    f"the {state.MAX_CHATS} last active",
    (
        f"{users.MAX_PREFIX_CHARACTERS} characters; {search.MAX_QUERY_CHARACTERS}; "
        f"{search.TIMEOUT_SECONDS:g} s"
    ),
    f"{MAX_PARTICIPANTS} at most ever",
    f"1 to {MAX_CONTENT_CHARACTERS:,} characters; {formatting.MAX_RANGES_PER_STYLE:,} ranges",
    (
        f"{add_reaction.MAX_REACTIONS_PER_USER} different ones (409); "
        f"{emoji.MAX_EMOJI_CHARACTERS} characters"
    ),
    f"{MIN_PASSWORD_BYTES} to {MAX_PASSWORD_BYTES} bytes",
    f"open sessions of a user | {MAX_SESSIONS_OF_USER}:",
    f"{SETTINGS.append_queue_limit:,} commands waiting",
    (
        f"{read_models.MAX_WAITING_READS:,} queries waiting for their position and "
        f"{SETTINGS.read_wait_seconds:g} s"
    ),
    f"{passwords.MAX_WAITING} passwords waiting",
    f"{login_limits.MAX_WAITING_LOGINS} logins waiting",
    f"{database.STATEMENT_TIMEOUT_MS // 1_000} s for a statement",
)


@pytest.mark.parametrize("stated", STATED)
def test_a_limit_is_what_the_readme_says(stated: str) -> None:
    assert stated in LIMITS
