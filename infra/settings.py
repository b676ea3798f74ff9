"""Every setting of every process, read once from `MESSENGER_*` environment variables.

`load` answers a frozen `Settings` or raises `SettingError`, whose message is one line that names
the variable, its value (never a secret's) and what is expected. A variable nobody knows is
refused, so a typo can not pass silently. Where the servers' addresses are not set, those of the
`messenger up` that runs on the same data directory are taken from its `run.json`.

`SETTINGS` is the one list of them; `Settings` has a field of the same name for each.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from infra import setting_kinds as kinds
from infra.guessable import is_known, is_placeholder
from infra.setting_kinds import Kind
from infra.urls import NATS_SCHEMES, credentials, without_password

PREFIX = "MESSENGER_"
RUN_FILE = "run.json"
PRODUCTION_BCRYPT_ROUNDS = 12
SECRET_CHARACTERS_MIN = 32
OPS_TOKEN_CHARACTERS_MIN = 16
WHOLE_BATCH_COMMANDS = 500  # a burst that is less would refuse the largest batch for ever

S3 = ("s3_endpoint", "s3_access_key", "s3_secret_key")
DATABASE = ("database_url",)
LOG = ("database_url", "nats_url")
STORES = ("database_url", *S3)
SERVERS = (*LOG, *S3)


class SettingError(Exception):
    """A setting is missing or wrong."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings; a server's address that the caller did not ask for may be empty."""

    env: Literal["development", "test", "production"]
    data_dir: Path
    database_url: str
    database_replica_url: str | None
    database_pool_size: int
    nats_url: str
    nats_ca: Path | None
    nats_certificate: Path | None
    nats_key: Path | None
    s3_endpoint: str
    s3_access_key: str
    s3_secret_key: str
    s3_bucket: str
    s3_region: str
    s3_public_endpoint: str | None
    s3_ca: Path | None
    secret: str | None
    host: str
    port: int
    bcrypt_rounds: int
    rate_limits: bool
    rate_limit_user_per_second: float
    rate_limit_user_burst: int
    rate_limit_address_per_second: float
    rate_limit_address_burst: int
    rate_limit_password_per_second: float
    rate_limit_password_burst: int
    trusted_proxies: str | None
    allowed_origins: str | None
    ops_token: str | None
    access_token_seconds: int
    refresh_token_seconds: int
    login_failures_per_account: int
    login_failures_per_address: int
    login_window_seconds: int
    read_wait_seconds: float
    ready_lag_seconds: float
    attachment_unsent_seconds: float
    archive_tablespace: str | None
    archive_months: int
    append_queue_limit: int
    receipt_flush_ms: int
    presence_grace_seconds: float
    stream_heartbeat_seconds: float
    stream_catch_up_events: int
    stream_sockets: int
    stream_sockets_of_user: int
    metrics_address: str | None
    metrics_peers: str | None
    otlp_endpoint: str | None
    trace_share: float
    log_level: str


class Setting(NamedTuple):
    """One setting; `default` is text as it would stand in the variable, None where it is unset."""

    name: str
    kind: Kind
    default: str | None
    meaning: str
    unit: str = ""
    is_secret: bool = False

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


class Row(NamedTuple):
    """A line of `messenger settings`."""

    variable: str
    value: str
    default: str
    expects: str
    unit: str
    meaning: str


def load(
    environ: Mapping[str, str],
    data_dir: Path | None = None,
    *,
    needs: Sequence[str] = SERVERS,
    looks_for_running: bool = True,
) -> Settings:
    """The settings in force; `needs` names the servers' settings that must not be empty.

    `messenger up` itself does not look for a running one: it would find its own leftovers.
    """
    _refuse_unknown(environ)
    given = {s.name: environ[s.variable] for s in SETTINGS if environ.get(s.variable)}
    if data_dir is not None:
        given["data_dir"] = str(data_dir)
    directory = Path(given.get("data_dir", str(_BY_NAME["data_dir"].default)))
    if looks_for_running:
        given = _running(directory, given) | given
    values = {setting.name: _value(setting, given.get(setting.name)) for setting in SETTINGS}
    _refuse_missing(values, needs)
    settings = msgspec.convert(values, Settings)
    _refuse_combinations(settings)
    if settings.env == "production":
        _refuse_development_secrets(settings, environ)
    return settings


def table(settings: Settings) -> list[Row]:
    """Every setting with the value in force, secrets masked."""
    return [
        Row(
            variable=setting.variable,
            value=_shown(setting, getattr(settings, setting.name)),
            default="" if setting.default is None else setting.default,
            expects=setting.kind.expects,
            unit=setting.unit,
            meaning=setting.meaning,
        )
        for setting in SETTINGS
    ]


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = [setting.variable for setting in SETTINGS]
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable not in known:
            close = get_close_matches(variable, known, n=1)
            hint = f": did you mean {close[0]}?" if close else " (`messenger settings` lists all)"
            raise SettingError(f"{variable} is not a setting{hint}")


def _running(directory: Path, given: Mapping[str, str]) -> dict[str, str]:
    """The addresses in run.json, unless a given one says that other servers are meant."""
    try:
        run = msgspec.json.decode((directory / RUN_FILE).read_bytes(), type=dict[str, object])
    except (OSError, msgspec.MsgspecError):
        return {}
    found = {name: value for name in SERVERS if isinstance(value := run.get(name), str)}
    # Half of one installation with half of another would mix two logs.
    if any(given[name] != value for name, value in found.items() if name in given):
        return {}
    return found


def _value(setting: Setting, given: str | None) -> object:
    text = setting.default if given is None else given
    if text is None:
        return "" if setting.name in SERVERS else None
    try:
        return setting.kind.parse(text)
    except ValueError:
        shown = "" if setting.is_secret else f"={without_password(text)}"
        message = f"{setting.variable}{shown} is not {setting.kind.expects}"
        raise SettingError(message) from None


def _refuse_missing(values: Mapping[str, object], needs: Sequence[str]) -> None:
    for name in needs:
        if not values[name]:
            setting = _BY_NAME[name]
            raise SettingError(
                f"{setting.variable} is not set: expected {setting.kind.expects} "
                f"(or a running `messenger up` on the data directory {values['data_dir']})"
            )


def _refuse_combinations(settings: Settings) -> None:
    if settings.env != "test" and not settings.rate_limits:
        raise SettingError("MESSENGER_RATE_LIMITS=off is allowed with MESSENGER_ENV=test only")
    if settings.env != "test" and settings.bcrypt_rounds < PRODUCTION_BCRYPT_ROUNDS:
        raise SettingError(
            f"MESSENGER_BCRYPT_ROUNDS={settings.bcrypt_rounds} is allowed with MESSENGER_ENV=test "
            f"only: expected {PRODUCTION_BCRYPT_ROUNDS} to 16"
        )
    if (settings.nats_certificate is None) != (settings.nats_key is None):
        raise SettingError("MESSENGER_NATS_CERTIFICATE and MESSENGER_NATS_KEY go together")
    if settings.ops_token is not None and settings.ops_token == settings.secret:
        raise SettingError(
            "MESSENGER_OPS_TOKEN is the same as MESSENGER_SECRET: operators could sign as any user"
        )


def _refuse_development_secrets(settings: Settings, environ: Mapping[str, str]) -> None:
    if settings.secret is None:
        raise SettingError(
            f"MESSENGER_SECRET is not set: expected {_SECRET.expects} with MESSENGER_ENV=production"
        )
    if is_placeholder(settings.secret):
        raise _development_secret("secret", "like `openssl rand -hex 32` makes it")
    if settings.ops_token is not None:
        _refuse_weak_ops_token(settings.ops_token)
    _refuse_nats_for_anybody(settings)
    for name in ("database_url", "database_replica_url", "nats_url"):
        for url in (getattr(settings, name) or "").split(","):
            user, password = credentials(url)
            if password is not None and (password == user or is_known(password)):
                raise _development_secret(name, "with a password that nobody can guess")
    password = environ.get("PGPASSWORD")  # PostgreSQL's own, where a URL has none
    if password and (password == environ.get("PGUSER") or is_known(password)):
        raise SettingError(
            "PGPASSWORD is one for development: MESSENGER_ENV=production expects one that nobody can "
            "guess"
        )
    if settings.s3_secret_key and (
        settings.s3_secret_key == settings.s3_access_key or is_known(settings.s3_secret_key)
    ):
        raise _development_secret("s3_secret_key", "that nobody can guess")


def _refuse_nats_for_anybody(settings: Settings) -> None:
    """Who says nothing of himself there is asked nothing, and may write into the log's copy."""
    if settings.nats_certificate is not None or not settings.nats_url:
        return
    for url in settings.nats_url.split(","):
        if not credentials(url)[1]:
            raise SettingError(
                f"MESSENGER_NATS_URL={without_password(url)} has no user and password: "
                "MESSENGER_ENV=production expects tls://USER:PASSWORD@HOST:PORT, or "
                "MESSENGER_NATS_CERTIFICATE where NATS asks for one"
            )


def _refuse_weak_ops_token(token: str) -> None:
    if len(token) < SECRET_CHARACTERS_MIN or is_placeholder(token):
        raise _development_secret(
            "ops_token",
            f"of {SECRET_CHARACTERS_MIN} or more characters, like `openssl rand -hex 32` makes it",
        )


def _development_secret(name: str, expected: str) -> SettingError:
    return SettingError(
        f"{PREFIX}{name.upper()} is one for development: MESSENGER_ENV=production expects one {expected}"
    )


def _shown(setting: Setting, value: object) -> str:
    if value is None or value == "":
        return ""
    if setting.is_secret:
        return "********"
    if isinstance(value, bool):
        return "on" if value else "off"
    return without_password(str(value))


_FILE = Kind("a file that can be read", kinds.file)
_DATABASE_URL = kinds.url("postgresql", "postgres", needs_path=True)
_KEY = kinds.text("1 to 256 printable characters", 1, 256)
_SECRET = kinds.text(f"{SECRET_CHARACTERS_MIN} or more characters", SECRET_CHARACTERS_MIN, 1024)
_OPS_TOKEN = kinds.text(
    f"{OPS_TOKEN_CHARACTERS_MIN} to 256 printable characters", OPS_TOKEN_CHARACTERS_MIN, 256
)
_COUNT = kinds.whole(1, 1_000_000)
_RATE = kinds.number(0.001, 1_000_000)
_BURST = kinds.whole(WHOLE_BATCH_COMMANDS, 1_000_000)

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "env",
        kinds.one_of("development", "test", "production"),
        "development",
        "what the installation is for; test allows settings that are unsafe elsewhere",
    ),
    Setting("data_dir", Kind("a directory", Path), ".messenger", "where `messenger up` keeps all"),
    Setting("database_url", _DATABASE_URL, None, "PostgreSQL"),
    Setting("database_replica_url", _DATABASE_URL, None, "a replica that queries may read from"),
    Setting(
        "database_pool_size", kinds.whole(1, 100), "8", "connections of one process", "connections"
    ),
    Setting("nats_url", kinds.url(*NATS_SCHEMES, several=True), None, "NATS with JetStream"),
    Setting("nats_ca", _FILE, None, "who signed NATS's certificate; NATS has to speak TLS then"),
    Setting("nats_certificate", _FILE, None, "our certificate for NATS"),
    Setting("nats_key", _FILE, None, "its private key"),
    Setting("s3_endpoint", kinds.url("http", "https"), None, "the object store"),
    Setting("s3_access_key", _KEY, None, "the object store's access key"),
    Setting("s3_secret_key", _KEY, None, "the object store's secret key", is_secret=True),
    Setting(
        "s3_bucket",
        Kind("a bucket name: 3 to 63 of a-z, 0-9, - and .", kinds.bucket),
        "messenger",
        "the object store's bucket",
    ),
    Setting(
        "s3_region", kinds.text("1 to 64 printable characters", 1, 64), "us-east-1", "its region"
    ),
    Setting(
        "s3_public_endpoint",
        kinds.url("http", "https"),
        None,
        "where clients reach the object store, if elsewhere than we do",
    ),
    Setting("s3_ca", _FILE, None, "who signed the object store's certificate"),
    Setting(
        "secret",
        _SECRET,
        None,
        "signs access tokens; where unset, one that is kept in the database",
        is_secret=True,
    ),
    Setting(
        "host", kinds.text("a host name or address", 1, 255), "127.0.0.1", "where the API listens"
    ),
    Setting("port", kinds.whole(0, 65535), "8080", "where the API listens; 0 takes a free one"),
    Setting("bcrypt_rounds", kinds.whole(4, 16), "12", "cost of a password hash", "log2 of rounds"),
    Setting("rate_limits", Kind("on or off", kinds.switch), "on", "whether limits are enforced"),
    Setting("rate_limit_user_per_second", _RATE, "50", "one user, in the long run", "requests/s"),
    Setting("rate_limit_user_burst", _BURST, "1000", "one user, at once", "requests"),
    Setting(
        "rate_limit_address_per_second", _RATE, "200", "one address, in the long run", "requests/s"
    ),
    Setting("rate_limit_address_burst", _BURST, "4000", "one address, at once", "requests"),
    Setting(
        "rate_limit_password_per_second",
        _RATE,
        "5",
        "one address, requests with a password, in the long run",
        "requests/s",
    ),
    Setting(
        "rate_limit_password_burst",
        _COUNT,
        "1000",
        "one address, requests with a password, at once",
        "requests",
    ),
    Setting(
        "trusted_proxies",
        Kind("addresses or networks like 10.0.0.0/8, several with commas", kinds.networks),
        None,
        "whose X-Forwarded-For is believed: the client is its last address that is none of them",
    ),
    Setting(
        "allowed_origins",
        Kind("origins like https://chat.example.org, several with commas", kinds.origins),
        None,
        "whose pages in browsers may use the API and the stream, besides our own",
    ),
    Setting(
        "ops_token",
        _OPS_TOKEN,
        None,
        "opens the operators' page at /ops; where unset, there is none",
        is_secret=True,
    ),
    Setting("access_token_seconds", kinds.whole(1, 86_400), "900", "life of an access token", "s"),
    Setting(
        "refresh_token_seconds",
        kinds.whole(1, 31_536_000),
        "2592000",
        "life of a refresh token",
        "s",
    ),
    Setting("login_failures_per_account", _COUNT, "10", "wrong passwords per window", "failures"),
    Setting("login_failures_per_address", _COUNT, "100", "wrong passwords per window", "failures"),
    Setting("login_window_seconds", kinds.whole(1, 86_400), "900", "the window of these two", "s"),
    Setting(
        "read_wait_seconds",
        kinds.number(0, 60),
        "5",
        "how long a query waits for its position",
        "s",
    ),
    Setting(
        "ready_lag_seconds",
        kinds.number(0.1, 3600),
        "30",
        "lag that makes a process not ready",
        "s",
    ),
    Setting(
        "attachment_unsent_seconds",
        kinds.number(0, 31_536_000),
        "86400",
        "how long an attachment may wait to be sent before it is removed",
        "s",
    ),
    Setting(
        "archive_tablespace",
        kinds.text("a tablespace of the database: 1 to 63 printable characters", 1, 63),
        None,
        "where `messenger maintain` moves old months of messages; unset, they stay",
    ),
    Setting(
        "archive_months",
        kinds.whole(1, 1_200),
        "12",
        "after how many months messages are moved to the archive",
        "months",
    ),
    Setting(
        "append_queue_limit", _COUNT, "4096", "commands that may wait in one process", "commands"
    ),
    Setting(
        "receipt_flush_ms",
        kinds.whole(10, 10_000),
        "250",
        "how long receipts of the stream are gathered before they are recorded together",
        "ms",
    ),
    Setting(
        "presence_grace_seconds",
        kinds.number(0, 20),
        "5",
        "how long who has closed the last connection still counts as online",
        "s",
    ),
    Setting(
        "stream_heartbeat_seconds",
        kinds.number(0.1, 3600),
        "30",
        "a client of the stream that is silent for two of these is closed",
        "s",
    ),
    Setting(
        "stream_catch_up_events",
        kinds.whole(100_000, 1_000_000_000),
        "1000000",
        "how far back in the log a client of the stream may resume",
        "events",
    ),
    Setting("stream_sockets", _COUNT, "10000", "open streams of one process", "connections"),
    Setting(
        "stream_sockets_of_user",
        _COUNT,
        "50",
        "open streams of one user and process",
        "connections",
    ),
    Setting(
        "metrics_address",
        Kind("HOST:PORT, or fd:NUMBER of a listening socket", kinds.metrics_address),
        None,
        "where this process serves its own metrics, besides what the API serves; unset, nowhere",
    ),
    Setting(
        "metrics_peers",
        Kind("NAME=HOST:PORT, several with commas", kinds.metrics_peers),
        None,
        "whose metrics the API answers together; unset, those of the process that answers",
    ),
    Setting(
        "otlp_endpoint",
        kinds.url("http", "https"),
        None,
        "where traces are sent to, by OTLP over HTTP; unset, there are none",
    ),
    Setting("trace_share", kinds.number(0, 1), "1", "which share of requests is traced"),
    Setting(
        "log_level", kinds.one_of("debug", "info", "warning", "error"), "info", "what is logged"
    ),
)

_BY_NAME = {setting.name: setting for setting in SETTINGS}
