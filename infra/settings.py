"""Every setting of every process, read once from `MESSENGER_*` environment variables.

`load` answers a frozen `Settings` or raises `SettingError`, whose message is one line that names
the variable, its value (never a secret's) and what is expected. A variable nobody knows is
refused, so a typo can not pass silently. Where the servers' addresses are not set, those of the
`messenger up` that runs on the same data directory are taken from its `run.json`.

`SETTINGS` is the one list of them; `Settings` has a field of the same name for each.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

PREFIX = "MESSENGER_"
_SECRET_PARAMETER = re.compile(r"(\w*password)=[^&]*", re.IGNORECASE)
RUN_FILE = "run.json"
PRODUCTION_BCRYPT_ROUNDS = 12
SECRET_CHARACTERS_MIN = 32
OPS_TOKEN_CHARACTERS_MIN = 16
WHOLE_BATCH_COMMANDS = 500  # a burst that is less would refuse the largest batch for ever

# What production refuses in place of a secret: what documents, examples and development use.
SECRET_DIFFERENT_CHARACTERS_MIN = 10
PLACEHOLDERS = (
    "change",
    "secret",
    "password",
    "passwd",
    "example",
    "default",
    "insecure",
    "development",
    "placeholder",
    "messenger",
    "replace",
    "sample",
    "insert",
    "your",
)
# So much of one of these in a row was typed, not drawn.
TYPED_CHARACTERS = 8
TYPED = ("abcdefghijklmnopqrstuvwxyz", "01234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm,.")
KNOWN_KEYS = frozenset(
    {
        "access",
        "admin",
        "development",
        "guest",
        "key",
        "messenger",
        "minio",
        "minioadmin",
        "minio123",
        "none",
        "nats",
        "pass",
        "postgres",
        "postgresql",
        "root",
        "s3cr3t",
        "test",
        "user",
    }
)

NATS_SCHEMES = ("nats", "tls")
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


class Kind(NamedTuple):
    """How text becomes a value: `parse` raises ValueError where it is not as `expects` says."""

    expects: str
    parse: Callable[[str], object]


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
            user, password = _credentials(url)
            if password is not None and (password == user or _is_known(password)):
                raise _development_secret(name, "with a password that nobody can guess")
    password = environ.get("PGPASSWORD")  # PostgreSQL's own, where a URL has none
    if password and (password == environ.get("PGUSER") or _is_known(password)):
        raise SettingError(
            "PGPASSWORD is one for development: MESSENGER_ENV=production expects one that nobody can "
            "guess"
        )
    if settings.s3_secret_key and (
        settings.s3_secret_key == settings.s3_access_key or _is_known(settings.s3_secret_key)
    ):
        raise _development_secret("s3_secret_key", "that nobody can guess")


def _refuse_nats_for_anybody(settings: Settings) -> None:
    """Who says nothing of himself there is asked nothing, and may write into the log's copy."""
    if settings.nats_certificate is not None or not settings.nats_url:
        return
    for url in settings.nats_url.split(","):
        if not _credentials(url)[1]:
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


def is_placeholder(secret: str) -> bool:
    """Whether it looks like one that was written by hand to be replaced."""
    few = len(set(secret)) < SECRET_DIFFERENT_CHARACTERS_MIN
    return few or _is_typed(secret.lower()) or any(word in secret.lower() for word in PLACEHOLDERS)


def _is_typed(secret: str) -> bool:
    """Along the alphabet, the digits or a row of keys."""
    return any(
        row[begin : begin + TYPED_CHARACTERS] in secret
        for row in TYPED
        for begin in range(len(row) - TYPED_CHARACTERS + 1)
    )


def _is_known(key: str) -> bool:
    return key.lower() in KNOWN_KEYS or any(word in key.lower() for word in PLACEHOLDERS)


def _development_secret(name: str, expected: str) -> SettingError:
    return SettingError(
        f"{PREFIX}{name.upper()} is one for development: MESSENGER_ENV=production expects one {expected}"
    )


def _credentials(url: str) -> tuple[str | None, str | None]:
    parts = urlsplit(url)
    if parts.scheme in NATS_SCHEMES:
        return _nats_credentials(parts)
    query = dict(parse_qsl(parts.query))
    password = unquote(parts.password) if parts.password else query.get("password")
    return parts.username or query.get("user"), password


def _nats_credentials(parts: SplitResult) -> tuple[str | None, str | None]:
    """What stands there alone is a token."""
    if parts.password is None:
        return None, parts.username
    return parts.username, parts.password


def _shown(setting: Setting, value: object) -> str:
    if value is None or value == "":
        return ""
    if setting.is_secret:
        return "********"
    if isinstance(value, bool):
        return "on" if value else "off"
    return without_password(str(value))


def without_password(text: str) -> str:
    """A URL, or several with commas, as it may be shown."""
    return ",".join(_urlwithout_password(part) for part in text.split(","))


def _urlwithout_password(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    rest, question, query = rest.partition("?")
    credentials, at, address = rest.rpartition("@")
    if not separator:
        return text
    user, colon, _ = credentials.partition(":")
    if scheme in NATS_SCHEMES and at and not colon:
        user = "********"  # a token
    shown = f"{scheme}://{user}{colon and ':********'}{at}{address}"
    return shown + question + _SECRET_PARAMETER.sub(r"\1=********", query)


def _one_of(*words: str) -> Kind:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return Kind(f"one of {', '.join(words)}", parse)


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError
    return text == "on"


def _whole(low: int, high: int) -> Kind:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return Kind(f"a whole number from {low} to {high}", parse)


def _number(low: float, high: float) -> Kind:
    def parse(text: str) -> float:
        if not low <= float(text) <= high:
            raise ValueError
        return float(text)

    return Kind(f"a number from {low:g} to {high:g}", parse)


def _url(*schemes: str, several: bool = False, needs_path: bool = False) -> Kind:
    def check(text: str) -> None:
        parts = urlsplit(text)
        _ = parts.port  # raises ValueError where it is not a port
        has_host = parts.hostname or "host=" in parts.query  # a socket's directory
        if parts.scheme not in schemes or not has_host or any(c.isspace() for c in text):
            raise ValueError
        if needs_path and len(parts.path) < 2:
            raise ValueError

    def parse(text: str) -> str:
        for url in text.split(",") if several else [text]:
            check(url)
        return text

    form = f"{schemes[0]}://HOST:PORT{'/NAME' if needs_path else ''}"
    return Kind(f"a URL like {form}{', or several with commas' if several else ''}", parse)


def _text(expects: str, low: int, high: int) -> Kind:
    def parse(text: str) -> str:
        if not low <= len(text) <= high or not text.isprintable():
            raise ValueError
        return text

    return Kind(expects, parse)


def _bucket(text: str) -> str:
    letters = text.replace("-", "").replace(".", "")
    if not 3 <= len(text) <= 63 or not letters.isascii() or not letters.isalnum():
        raise ValueError
    if text != text.lower() or not text[0].isalnum() or not text[-1].isalnum():
        raise ValueError
    return text


def _networks(text: str) -> str:
    """As uvicorn takes them: it would hold what is none for a host's name."""
    return ",".join(str(ip_network(part.strip())) for part in text.split(","))


def _metrics_address(text: str) -> str:
    kind, _, number = text.rpartition(":")
    if not kind or not number.isascii() or not number.isdigit() or int(number) > 65_535:
        raise ValueError
    return text


def _metrics_peers(text: str) -> str:
    names = []
    for one in text.split(","):
        name, _, address = one.partition("=")
        if not name.isascii() or not name.replace("-", "").isalnum():
            raise ValueError
        _metrics_address(address)
        names.append(name)
    if len(set(names)) < len(names):
        raise ValueError
    return text


def _file(text: str) -> Path:
    path = Path(text)
    try:
        with path.open("rb"):
            return path.absolute()
    except OSError:
        raise ValueError from None


def _origins(text: str) -> str:
    """In lower case, as browsers send them."""
    return ",".join(_origin(part.strip()) for part in text.split(","))


def _origin(text: str) -> str:
    parts = urlsplit(text.lower())
    _ = parts.port  # raises ValueError where it is not a port
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError
    if f"{parts.scheme}://{parts.netloc}" != text.lower() or parts.username is not None:
        raise ValueError
    return text.lower()


_FILE = Kind("a file that can be read", _file)
_DATABASE_URL = _url("postgresql", "postgres", needs_path=True)
_KEY = _text("1 to 256 printable characters", 1, 256)
_SECRET = _text(f"{SECRET_CHARACTERS_MIN} or more characters", SECRET_CHARACTERS_MIN, 1024)
_OPS_TOKEN = _text(
    f"{OPS_TOKEN_CHARACTERS_MIN} to 256 printable characters", OPS_TOKEN_CHARACTERS_MIN, 256
)
_COUNT = _whole(1, 1_000_000)
_RATE = _number(0.001, 1_000_000)
_BURST = _whole(WHOLE_BATCH_COMMANDS, 1_000_000)

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "env",
        _one_of("development", "test", "production"),
        "development",
        "what the installation is for; test allows settings that are unsafe elsewhere",
    ),
    Setting("data_dir", Kind("a directory", Path), ".messenger", "where `messenger up` keeps all"),
    Setting("database_url", _DATABASE_URL, None, "PostgreSQL"),
    Setting("database_replica_url", _DATABASE_URL, None, "a replica that queries may read from"),
    Setting("database_pool_size", _whole(1, 100), "8", "connections of one process", "connections"),
    Setting("nats_url", _url(*NATS_SCHEMES, several=True), None, "NATS with JetStream"),
    Setting("nats_ca", _FILE, None, "who signed NATS's certificate; NATS has to speak TLS then"),
    Setting("nats_certificate", _FILE, None, "our certificate for NATS"),
    Setting("nats_key", _FILE, None, "its private key"),
    Setting("s3_endpoint", _url("http", "https"), None, "the object store"),
    Setting("s3_access_key", _KEY, None, "the object store's access key"),
    Setting("s3_secret_key", _KEY, None, "the object store's secret key", is_secret=True),
    Setting(
        "s3_bucket",
        Kind("a bucket name: 3 to 63 of a-z, 0-9, - and .", _bucket),
        "messenger",
        "the object store's bucket",
    ),
    Setting("s3_region", _text("1 to 64 printable characters", 1, 64), "us-east-1", "its region"),
    Setting(
        "s3_public_endpoint",
        _url("http", "https"),
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
    Setting("host", _text("a host name or address", 1, 255), "127.0.0.1", "where the API listens"),
    Setting("port", _whole(0, 65535), "8080", "where the API listens; 0 takes a free one"),
    Setting("bcrypt_rounds", _whole(4, 16), "12", "cost of a password hash", "log2 of rounds"),
    Setting("rate_limits", Kind("on or off", _switch), "on", "whether limits are enforced"),
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
        Kind("addresses or networks like 10.0.0.0/8, several with commas", _networks),
        None,
        "whose X-Forwarded-For is believed: the client is its last address that is none of them",
    ),
    Setting(
        "allowed_origins",
        Kind("origins like https://chat.example.org, several with commas", _origins),
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
    Setting("access_token_seconds", _whole(1, 86_400), "900", "life of an access token", "s"),
    Setting(
        "refresh_token_seconds", _whole(1, 31_536_000), "2592000", "life of a refresh token", "s"
    ),
    Setting("login_failures_per_account", _COUNT, "10", "wrong passwords per window", "failures"),
    Setting("login_failures_per_address", _COUNT, "100", "wrong passwords per window", "failures"),
    Setting("login_window_seconds", _whole(1, 86_400), "900", "the window of these two", "s"),
    Setting(
        "read_wait_seconds", _number(0, 60), "5", "how long a query waits for its position", "s"
    ),
    Setting(
        "ready_lag_seconds", _number(0.1, 3600), "30", "lag that makes a process not ready", "s"
    ),
    Setting(
        "attachment_unsent_seconds",
        _number(0, 31_536_000),
        "86400",
        "how long an attachment may wait to be sent before it is removed",
        "s",
    ),
    Setting(
        "archive_tablespace",
        _text("a tablespace of the database: 1 to 63 printable characters", 1, 63),
        None,
        "where `messenger maintain` moves old months of messages; unset, they stay",
    ),
    Setting(
        "archive_months",
        _whole(1, 1_200),
        "12",
        "after how many months messages are moved to the archive",
        "months",
    ),
    Setting(
        "append_queue_limit", _COUNT, "4096", "commands that may wait in one process", "commands"
    ),
    Setting(
        "receipt_flush_ms",
        _whole(10, 10_000),
        "250",
        "how long receipts of the stream are gathered before they are recorded together",
        "ms",
    ),
    Setting(
        "presence_grace_seconds",
        _number(0, 20),
        "5",
        "how long who has closed the last connection still counts as online",
        "s",
    ),
    Setting(
        "stream_heartbeat_seconds",
        _number(0.1, 3600),
        "30",
        "a client of the stream that is silent for two of these is closed",
        "s",
    ),
    Setting(
        "stream_catch_up_events",
        _whole(100_000, 1_000_000_000),
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
        Kind("HOST:PORT, or fd:NUMBER of a listening socket", _metrics_address),
        None,
        "where this process serves its own metrics, besides what the API serves; unset, nowhere",
    ),
    Setting(
        "metrics_peers",
        Kind("NAME=HOST:PORT, several with commas", _metrics_peers),
        None,
        "whose metrics the API answers together; unset, those of the process that answers",
    ),
    Setting(
        "otlp_endpoint",
        _url("http", "https"),
        None,
        "where traces are sent to, by OTLP over HTTP; unset, there are none",
    ),
    Setting("trace_share", _number(0, 1), "1", "which share of requests is traced"),
    Setting("log_level", _one_of("debug", "info", "warning", "error"), "info", "what is logged"),
)

_BY_NAME = {setting.name: setting for setting in SETTINGS}
