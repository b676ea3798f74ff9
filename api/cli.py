"""The command `messenger`: everything on one machine, its parts, and an operator's tools.

Errors are one line on stderr and exit code 1 (2 for a wrong command line). Of what logs, from its start
to its end, it is a line of the log. Only the commands that serve import the web framework: a
projector stays small.
"""

import asyncio
import errno
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from api.arguments import (
    DATA_DIR,
    Named,
    check_replay,
    check_url,
    checked_interval,
    checked_why,
    password_of,
    projections_of,
    refuse_what_is_no_text,
)
from infra import settings as all_settings
from infra.errors import MessengerError
from infra.settings import SettingError, Settings

CAN_NOT_BE_WRITTEN = (errno.ENOSPC, errno.EIO, errno.EPIPE)


# What `messenger project` does unless told otherwise; no projection may have its name.
RUN = "run"

# Wide enough for a setting a line.
PIPED_CHARACTERS = 400
CHECK_CODES = {"up to date": 0, "behind": 1, "ahead": 3}  # 2 is a wrong command line


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="messenger")
def messenger() -> None:
    """A real-time messenger's server."""


@messenger.command()
@DATA_DIR
@click.option("--host", default=None, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=None, help="0 takes a free one.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True)
def up(data_dir: Path | None, host: str | None, port: int | None, workers: int) -> None:
    """Run everything on this machine until Ctrl-C."""
    from api.up import supervisor

    settings = _settings(data_dir, needs=(), looks_for_running=False)
    code = asyncio.run(
        supervisor.run(
            data_dir=settings.data_dir,
            host=host or settings.host,
            port=settings.port if port is None else port,
            workers=workers,
            environ=os.environ,
        )
    )
    sys.exit(code)


@messenger.command()
@click.option("--check", is_flag=True, help="Change nothing, say in one line how it is.")
@DATA_DIR
def migrate(check: bool, data_dir: Path | None) -> None:
    """Bring the database to the shape that this version needs, while all go on.

    With --check the exit code is 0 if it is up to date, 1 if it is behind (or does not answer), and
    3 if it is ahead of this code.
    """
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    from infra import migrate as migrations

    settings = _settings(data_dir, needs=all_settings.DATABASE)
    try:
        if check:
            state = migrations.state(settings.database_url)
            click.echo(state.line)
            sys.exit(CHECK_CODES[state.name])
        migrations.upgrade(settings.database_url)
    except OperationalError as error:
        raise _Failure(f"the database does not answer: {_first_line(error.orig)}") from error
    except SQLAlchemyError as error:
        raise _Failure(f"the migration failed: {_first_line(error)}") from error
    except MessengerError as error:
        raise _Failure(str(error)) from error


@messenger.command()
@DATA_DIR
@click.option("--host", default=None)
@click.option("--port", type=click.IntRange(0, 65535), default=None)
@click.option("--fd", type=int, default=None, help="Serve on this listening socket instead.")
def api(data_dir: Path | None, host: str | None, port: int | None, fd: int | None) -> None:
    """Serve the HTTP API."""
    from api.app import serve

    settings = _settings(data_dir)
    serving = serve(
        settings,
        host=host or settings.host,
        port=settings.port if port is None else port,
        fd=fd,
    )
    _run_logging("api", settings, serving)


@messenger.command()
@DATA_DIR
def relay(data_dir: Path | None) -> None:
    """Copy the log to NATS JetStream."""
    from api import daemons

    settings = _settings(data_dir, needs=all_settings.LOG)
    _run_logging("relay", settings, daemons.relay(settings))


class _Projecting(click.Group):
    """`project NAME… | --all`, which is what it is for, beside `project skip`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_known = args and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if is_known else [RUN, *args])


@messenger.group(cls=_Projecting)
def project() -> None:
    """Keep read models up to date: NAME... or --all. Or skip an event that one can't apply."""


@project.command(name=RUN)
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="Every projection, in one process.")
@DATA_DIR
def runprojections_of(names: tuple[str, ...], everything: bool, data_dir: Path | None) -> None:
    """Keep read models up to date (what `messenger project NAME...` does)."""
    from api import daemons

    projections = projections_of(names, everything)
    settings = _settings(data_dir, needs=all_settings.LOG)
    _run_logging("projector", settings, daemons.project(settings, projections))


@project.command()
@click.argument("name")
@click.argument("position", type=click.IntRange(1))
@click.option("--why", required=True, help="For those who read about it later.")
@DATA_DIR
def skip(name: str, position: int, why: str, data_dir: Path | None) -> None:
    """Let the read model NAME do without the event at POSITION, at which it stands still.

    Recorded for ever, and honoured by every rebuild.
    """
    from api import upkeep

    [projection] = projections_of((name,), everything=False)
    reason = checked_why(why)
    settings = _settings(data_dir, needs=all_settings.DATABASE)
    _run(upkeep.run_skip(settings, projection, position, reason))


@messenger.command()
@click.option("--once", is_flag=True, help="Only what there is to do now.")
@DATA_DIR
def maintain(once: bool, data_dir: Path | None) -> None:
    """Remove what is not needed any more, make partitions ahead, archive old messages."""
    from api import maintaining

    settings = _settings(data_dir)
    _run_logging("maintain", settings, maintaining.maintain(settings, once=once))


@messenger.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="Every projection, one after the other.")
@click.option("--until", metavar="POSITION|TIME", help="Only up to here; needs --into.")
@click.option("--into", metavar="SCHEMA", help="Leave the result in this schema, swap nothing.")
@click.option("--build-only", is_flag=True, help="Up to the head, and swap with the next replay.")
@click.option("--follow", is_flag=True, help="With --build-only: keep it at the head until Ctrl-C.")
@click.option("--full-speed", is_flag=True, help="No breaks: for when nobody is served meanwhile.")
@click.option("--back", is_flag=True, help="Swap in again what the last swap put aside.")
@click.option("--drop-retired", is_flag=True, help="Only drop what earlier replays put aside.")
@DATA_DIR
def replay(
    names: tuple[str, ...],
    everything: bool,
    until: str | None,
    into: str | None,
    build_only: bool,
    follow: bool,
    full_speed: bool,
    back: bool,
    drop_retired: bool,
    data_dir: Path | None,
) -> None:
    """Rebuild read models beside the live ones, then swap."""
    from api import upkeep

    projections = projections_of(names, everything)
    check_replay(until, into, follow and not build_only, build_only, back, drop_retired)
    settings = _settings(data_dir, needs=all_settings.DATABASE)
    if drop_retired:
        _run(upkeep.run_drop_retired(settings, projections))
    elif until is not None and into is not None:
        _run(upkeep.run_replay_until(settings, projections, until, into))
    elif build_only:
        _run(upkeep.run_build(settings, projections, follow=follow, full_speed=full_speed))
    else:
        _run(upkeep.run_replay(settings, projections, back=back, full_speed=full_speed))


@messenger.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@DATA_DIR
def verify(names: tuple[str, ...], data_dir: Path | None) -> None:
    """Compare read models with the log; exit 1 if a row differs."""
    from api import upkeep

    projections = projections_of(names, everything=not names)
    settings = _settings(data_dir, needs=all_settings.DATABASE)
    _run(upkeep.run_verify(settings, projections))


@messenger.command()
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option(
    "--every",
    "every_seconds",
    type=click.FloatRange(0.2, 3600),
    metavar="SECONDS",
    help="How often, with --watch: 0.2 to 3600, 1 unless told otherwise.",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
@DATA_DIR
def status(watch: bool, every_seconds: float | None, as_json: bool, data_dir: Path | None) -> None:
    """Show the log, the relay, the projections and the processes.

    With --watch it goes on while PostgreSQL or NATS is away. Not on a terminal, that is a line each
    time.
    """
    from api import watching

    seconds = checked_interval(watch, every_seconds)
    settings = _settings(data_dir, needs=all_settings.LOG)
    if watch:
        _run(watching.run_watch(settings, every_seconds=seconds, as_json=as_json))
    else:
        _run(watching.run_once(settings, as_json=as_json))


@messenger.command()
@click.option("--stream", help="Only of this stream, such as chat-ID.")
@click.option("--type", "type_name", help="Only of this type, such as message_sent.")
@click.option("--after", type=click.IntRange(0), default=0, show_default=True)
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@DATA_DIR
def events(
    stream: str | None, type_name: str | None, after: int, follow: bool, data_dir: Path | None
) -> None:
    """Print the log, one JSON object a line."""
    from api import upkeep

    settings = _settings(data_dir, needs=all_settings.DATABASE)
    _run(
        upkeep.run_events(settings, stream=stream, type_name=type_name, after=after, follow=follow)
    )


@messenger.group()
def log() -> None:
    """The event log itself."""


@log.command(name="new-epoch")
@DATA_DIR
def new_epoch(data_dir: Path | None) -> None:
    """Go on with a log that went back in time, such as one restored from a backup.

    JetStream gets a new copy of it, and all clients read their state anew. NATS has to be there, but
    of a `messenger up` that is stopped: then its servers are started for as long as this takes.
    """
    from api import at_rest, upkeep

    settings = _settings(data_dir, needs=())
    if not at_rest.has_servers(settings):
        settings = _settings(data_dir, needs=all_settings.LOG)
    _run(upkeep.run_new_epoch(settings))


@messenger.group()
def explain() -> None:
    """Say why something is as it is."""


@explain.command()
@click.argument("user")
@click.argument("chat")
@DATA_DIR
def unread(user: str, chat: str, data_dir: Path | None) -> None:
    """Print what makes up the unread count of USER in CHAT (ids, username, slug); exit 1 if it
    contradicts itself."""
    from api import explain

    _run(explain.run(_settings(data_dir, needs=all_settings.DATABASE), user, chat))


@messenger.command()
@DATA_DIR
def settings(data_dir: Path | None) -> None:
    """List every setting with its value."""
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(
        Column("variable", no_wrap=True), "value", "default", "expects", "unit", "meaning"
    )
    for row in all_settings.table(_settings(data_dir, needs=())):
        table.add_row(*row)
    console = Console()
    # Scripts read it by line: only a terminal makes it narrow.
    if not console.is_terminal:
        console = Console(width=PIPED_CHARACTERS)
    console.print(table)


@messenger.group()
def erasure() -> None:
    """What becomes of deleted accounts."""


@erasure.command()
@click.argument("user", metavar="USER")
@DATA_DIR
def report(user: str, data_dir: Path | None) -> None:
    """Look what is left of a user (id or username), and where; exit 1 if any can be read."""
    from api import erasure as shown

    _run(shown.run_report(_settings(data_dir), user))


@messenger.group(name="import")
def import_() -> None:
    """Bring real history in."""


@import_.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--replies", multiple=True, type=click.Path(path_type=Path), help="Annotations.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="JSON lines.")
@DATA_DIR
def irc(
    files: tuple[Path, ...],
    replies: tuple[Path, ...],
    report: Path | None,
    data_dir: Path | None,
) -> None:
    """Import days of an IRC channel: each day becomes a group chat."""
    from api.irc import command

    settings = _settings(data_dir, needs=all_settings.LOG)
    _run(command.run(settings, list(files), list(replies), report))


@import_.command()
@click.argument("file", type=Named(path_type=Path, dir_okay=False))
@DATA_DIR
def jsonl(file: Path, data_dir: Path | None) -> None:
    """Import what `messenger export` wrote, into an empty log; broken off, it goes on.

    Nobody else can write meanwhile. The objects are those in FILE.objects.
    """
    from api import moving

    _run(moving.run_import(_settings(data_dir, needs=all_settings.STORES), file))


@messenger.command()
@click.argument("file", type=Named(path_type=Path, dir_okay=False))
@DATA_DIR
def export(file: Path, data_dir: Path | None) -> None:
    """Write everything into FILE, as JSON lines, and the images into FILE.objects.

    All that is sealed in the log can be read there: keep it as you keep the keys.
    """
    from api import moving

    _run(moving.run_export(_settings(data_dir, needs=all_settings.STORES), file))


@messenger.command()
@click.option(
    "--url", default="http://127.0.0.1:8080", show_default=True, help="Where the API answers."
)
@click.option("--user", "username", required=True, metavar="NAME", help="Who you are.")
@click.option(
    "--chat",
    metavar="CHAT",
    help="Open this one: the other's username, a group's name or slug, or a number of the list.",
)
@click.option(
    "--password-file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="Read the password from its first line (-: of stdin) instead of asking for it.",
)
def chat(url: str, username: str, chat: str | None, password_file: Path | None) -> None:
    """Talk to people, from a terminal.

    Shows your chats, or the one that --chat names, live; what you type is sent, and /help tells
    the rest. A lost connection is made again, and nothing is lost or sent twice. Not on a
    terminal, it reads lines from stdin and writes lines to stdout, and leaves at the end of input
    when all is sent.
    """
    from api.chat import client

    check_url(url)
    password = password_of(password_file)
    _run(client.run(url=url, username=username, password=password, chat=chat))


class _Failure(click.ClickException):
    """One line on stderr, exit code 1."""

    def show(self, file: Any = None) -> None:
        click.echo(f"messenger: {self.format_message()}", err=True)


def _settings(
    data_dir: Path | None,
    *,
    needs: tuple[str, ...] = all_settings.SERVERS,
    looks_for_running: bool = True,
) -> Settings:
    try:
        return all_settings.load(
            os.environ, data_dir, needs=needs, looks_for_running=looks_for_running
        )
    except SettingError as error:
        raise _Failure(str(error)) from error


def _run(work: Coroutine[Any, Any, int | None]) -> None:
    """A known trouble becomes one line."""
    try:
        code = _done(work)
    except Exception as error:
        reason = _trouble(error)
        if reason is None:
            raise
        raise _Failure(reason) from error
    sys.exit(code)


def _trouble(error: Exception) -> str | None:
    """What an operator can do something about; None for what is a fault of ours."""
    from psycopg.errors import (
        InsufficientPrivilege,
        UndefinedColumn,
        UndefinedFunction,
        UndefinedTable,
    )

    from infra.database import DOWN

    match error:
        case MessengerError():
            return str(error)
        case InsufficientPrivilege():
            return f"the database allows it to its owner alone: {_first_line(error)}"
        case UndefinedTable() | UndefinedColumn() | UndefinedFunction():
            return f"the database has another shape (messenger migrate): {_first_line(error)}"
        case _ if isinstance(error, DOWN):
            return f"the database does not answer: {_first_line(error)}"
        case OSError(filename=str(name)):
            return f"{name}: {error.strerror}"
        case _:
            return None


def _run_logging(process: str, settings: Settings, work: Coroutine[Any, Any, None]) -> None:
    """Any trouble becomes the last line of the log."""
    from infra.logs import Logger, traceback_of

    logger = Logger(settings.log_level, process=process)
    try:
        code = _done(work)
    except Exception as error:  # noqa: BLE001 - Python would tell what a log must not: values of rows
        reason = _trouble(error)
        if reason is None:
            logger.error("internal_error", traceback=traceback_of(error))
        logger.error("process_ends", reason=reason or _first_line(error) or type(error).__name__)
        code = 1
    sys.exit(code)


def _done(work: Coroutine[Any, Any, int | None]) -> int:
    """Runs on uvloop; the exit code."""
    import uvloop

    try:
        return uvloop.run(work) or 0
    except KeyboardInterrupt:
        return 130


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def main() -> None:
    for argument in sys.argv[1:]:
        refuse_what_is_no_text(argument)
    try:
        try:
            messenger(prog_name="messenger")
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in CAN_NOT_BE_WRITTEN:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"messenger: the output can't be written: {error.strerror}")


if __name__ == "__main__":
    main()
