"""Settings: each comes from one variable, and a wrong one is named in one line."""

import json
import re
from pathlib import Path

import pytest

from infra import settings
from infra.settings import SERVERS, SETTINGS, SettingError, Settings, load, table

RANDOM = "4f9a1c0be27d6358a1c4f09d7be26538"
URLS = {
    "MESSENGER_DATABASE_URL": "postgresql://u:hidden@db.example/messenger",
    "MESSENGER_NATS_URL": "nats://one.example:4222,nats://two.example:4222",
    "MESSENGER_S3_ENDPOINT": "https://s3.example",
    "MESSENGER_S3_ACCESS_KEY": "access",
    "MESSENGER_S3_SECRET_KEY": "hidden",
}
RUN = {
    "api_url": "http://127.0.0.1:1",
    "database_url": "postgresql://u@127.0.0.1:2/messenger",
    "nats_url": "nats://127.0.0.1:3",
    "s3_endpoint": "http://127.0.0.1:4",
    "s3_access_key": "access",
    "s3_secret_key": "secret",
    "pids": {"api": 5},
}


def refusal(**variables: str) -> str:
    with pytest.raises(SettingError) as caught:
        load({f"MESSENGER_{name}": value for name, value in variables.items()}, needs=())
    return str(caught.value)


def test_the_table_and_the_struct_name_the_same_settings() -> None:
    assert sorted(setting.name for setting in SETTINGS) == sorted(Settings.__struct_fields__)


def test_servers_addresses_come_from_the_environment(tmp_path: Path) -> None:
    loaded = load(URLS, tmp_path)
    assert loaded.database_url == URLS["MESSENGER_DATABASE_URL"]
    assert (loaded.data_dir, loaded.port, loaded.rate_limits) == (tmp_path, 8080, True)


def test_servers_addresses_come_from_a_running_up(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    loaded = load({}, tmp_path)
    assert [getattr(loaded, name) for name in SERVERS] == [RUN[name] for name in SERVERS]


def test_addresses_of_two_installations_are_never_mixed(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    with pytest.raises(SettingError, match="MESSENGER_NATS_URL is not set"):
        load({"MESSENGER_DATABASE_URL": URLS["MESSENGER_DATABASE_URL"]}, tmp_path)


def test_a_damaged_run_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(SettingError, match="MESSENGER_DATABASE_URL is not set"):
        load({}, tmp_path)


def test_only_what_is_needed_must_be_set(tmp_path: Path) -> None:
    database = {"MESSENGER_DATABASE_URL": URLS["MESSENGER_DATABASE_URL"]}
    assert load(database, tmp_path, needs=settings.DATABASE).nats_url == ""
    with pytest.raises(SettingError, match="MESSENGER_NATS_URL is not set: expected a URL"):
        load(database, tmp_path, needs=settings.LOG)


def test_a_mistyped_variable_is_refused_with_the_one_that_was_meant() -> None:
    assert "did you mean MESSENGER_DATABASE_URL?" in refusal(DATABSE_URL="x")
    assert "MESSENGER_WHATEVER_ELSE is not a setting" in refusal(WHATEVER_ELSE="x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("METRICS_ADDRESS", "127.0.0.1"),
        ("METRICS_ADDRESS", ":9101"),
        ("METRICS_ADDRESS", "127.0.0.1:65536"),
        ("METRICS_ADDRESS", "fd:x"),
        ("METRICS_PEERS", "127.0.0.1:9101"),
        ("METRICS_PEERS", "relay=127.0.0.1"),
        ("METRICS_PEERS", 'a"b=127.0.0.1:9101'),
        ("METRICS_PEERS", "relay=127.0.0.1:9101,relay=127.0.0.1:9102"),
        ("OTLP_ENDPOINT", "collector:4318"),
        ("TRACE_SHARE", "1.5"),
        ("PORT", "-1"),
        ("PORT", "٣"),
        ("READ_WAIT_SECONDS", "nan"),
        ("READ_WAIT_SECONDS", "soon"),
        ("ENV", "prod"),
        ("RATE_LIMITS", "true"),
        ("DATABASE_URL", "mysql://db.example/x"),
        ("DATABASE_URL", "postgresql:///x"),
        ("DATABASE_URL", "postgresql://db.example:port/x"),
        ("DATABASE_URL", "postgresql://db.example"),
        ("NATS_URL", "nats://one.example,http://two.example"),
        ("S3_ENDPOINT", "s3.example"),
        ("S3_BUCKET", "Not_A_Bucket"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_expected(name: str, value: str) -> None:
    message = refusal(**{name: value})
    kind = next(setting.kind for setting in SETTINGS if setting.variable == f"MESSENGER_{name}")
    assert message == f"MESSENGER_{name}={value} is not {kind.expects}"


def test_a_secret_is_never_shown() -> None:
    assert "short" not in refusal(SECRET="short")
    assert "hidden" not in refusal(DATABASE_URL="mysql://u:hidden@db.example/x")
    shown = repr(table(load(URLS, needs=())))
    assert "hidden" not in shown
    assert "postgresql://u:********@db.example/messenger" in shown
    beside = "postgresql://u@db.example/x?sslmode=require&password=hidden&sslpassword=hidden"
    shown = repr(table(load(URLS | {"MESSENGER_DATABASE_URL": beside}, needs=())))
    assert "hidden" not in shown
    assert "postgresql://u@db.example/x?sslmode=require&password=********&sslpassword=" in shown


def test_only_a_test_environment_may_be_weak() -> None:
    assert "MESSENGER_ENV=test only" in refusal(RATE_LIMITS="off")
    assert "MESSENGER_ENV=test only" in refusal(BCRYPT_ROUNDS="4", ENV="production")
    weak = {"MESSENGER_RATE_LIMITS": "off", "MESSENGER_BCRYPT_ROUNDS": "4"}
    loaded = load({**weak, "MESSENGER_ENV": "test"}, needs=())
    assert (loaded.rate_limits, loaded.bcrypt_rounds) == (False, 4)


def test_production_needs_a_secret_of_its_own() -> None:
    assert refusal(ENV="production").startswith("MESSENGER_SECRET is not set")
    assert load({"MESSENGER_ENV": "production", "MESSENGER_SECRET": RANDOM}, needs=()).secret


@pytest.mark.parametrize(
    "secret",
    [
        "s" * 32,
        "0123456701234567012345670123456701",
        "ChangeMe" + RANDOM,
        "my-secret" * 4,
        "replace-this-with-32-random-letters!",
        "abcdefghijklmnopqrstuvwxyz0123456789",
        "01234567890123456789012345678901234567",
        "qwertyuiopasdfghjklzxcvbnm1234567890",
    ],
)
def test_production_refuses_a_secret_that_was_to_be_replaced(secret: str) -> None:
    said = refusal(ENV="production", SECRET=secret)
    assert said.startswith("MESSENGER_SECRET is one for development")
    assert secret not in said
    assert load({"MESSENGER_SECRET": secret}, needs=()).secret == secret


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgresql://anna:anna@db.example/messenger"),
        ("DATABASE_URL", "postgresql://anna:postgres@db.example/messenger"),
        ("DATABASE_URL", "postgresql://anna@db.example/messenger?password=Change%4de"),
        ("DATABASE_URL", "postgresql://db.example/messenger?user=anna&password=anna"),
        ("DATABASE_REPLICA_URL", "postgresql://anna:messenger@db.example/messenger"),
        ("NATS_URL", "tls://relay:0f1e2d3c@one.example,tls://relay:guest@two.example"),
        ("NATS_URL", "tls://changeme@nats.example"),  # a token
        ("S3_SECRET_KEY", "minioadmin"),
    ],
)
def test_production_refuses_passwords_of_development(name: str, value: str) -> None:
    given = {"ENV": "production", "SECRET": RANDOM, name: value}
    said = refusal(**given)
    assert said.startswith(f"MESSENGER_{name} is one for development")
    assert value not in said
    variables = {f"MESSENGER_{one}": text for one, text in given.items()}
    load(variables | {"MESSENGER_ENV": "development"}, needs=())


@pytest.mark.parametrize(
    "of_postgres", [{"PGPASSWORD": "postgres"}, {"PGPASSWORD": "x", "PGUSER": "x"}]
)
def test_production_refuses_postgresqls_own_password_of_development(
    of_postgres: dict[str, str],
) -> None:
    given = {"MESSENGER_ENV": "production", "MESSENGER_SECRET": RANDOM} | of_postgres
    with pytest.raises(SettingError, match=r"^PGPASSWORD is one for development"):
        load(given, needs=())
    load(given | {"PGPASSWORD": RANDOM}, needs=())


@pytest.mark.parametrize(
    "url",
    [
        "tls://nats.example",
        "nats://127.0.0.1:4222",
        f"tls://relay:{RANDOM}@one.example,tls://two.example",
        "tls://relay:@nats.example",
        "tls://nats.example?user=relay&password=" + RANDOM,
    ],
)
def test_production_refuses_a_nats_that_is_for_anybody(url: str, tmp_path: Path) -> None:
    given = {"MESSENGER_ENV": "production", "MESSENGER_SECRET": RANDOM, "MESSENGER_NATS_URL": url}
    with pytest.raises(SettingError) as caught:
        load(given, needs=())
    said = str(caught.value)
    assert re.match(r"MESSENGER_NATS_URL=\S+ has no user and password: .*production", said)
    assert RANDOM not in said
    load(given | {"MESSENGER_ENV": "development"}, needs=())
    ours = tmp_path / "client.pem"
    ours.write_text("")
    by_certificate = {f"MESSENGER_NATS_{name}": str(ours) for name in ("CERTIFICATE", "KEY")}
    load(given | by_certificate, needs=())


def test_a_token_of_nats_is_a_password() -> None:
    url = f"tls://{RANDOM}@nats.example"
    given = {"MESSENGER_ENV": "production", "MESSENGER_SECRET": RANDOM[::-1]}
    loaded = load(given | {"MESSENGER_NATS_URL": url}, needs=())
    shown = repr(table(loaded))
    assert RANDOM not in shown
    assert "tls://********@nats.example" in shown


def test_production_takes_what_was_made_at_random_or_needs_no_password() -> None:
    load(
        {
            "MESSENGER_ENV": "production",
            "MESSENGER_SECRET": RANDOM,
            "MESSENGER_DATABASE_URL": f"postgresql://messenger:{RANDOM}@db.example/messenger",
            "MESSENGER_DATABASE_REPLICA_URL": "postgresql://messenger@db.example/messenger",
            "MESSENGER_NATS_URL": f"tls://relay:{RANDOM}@nats.example",
            "MESSENGER_S3_ENDPOINT": "https://s3.example",
            "MESSENGER_S3_ACCESS_KEY": "messenger",
            "MESSENGER_S3_SECRET_KEY": RANDOM,
        }
    )


def test_what_a_file_is_set_for_is_looked_at_at_once(tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    said = refusal(NATS_CA=str(missing))
    assert said == f"MESSENGER_NATS_CA={missing} is not a file that can be read"
    missing.write_text("")
    assert refusal(NATS_CERTIFICATE=str(missing)).endswith("MESSENGER_NATS_KEY go together")
    assert load({"MESSENGER_S3_CA": str(missing)}, needs=()).s3_ca == missing


@pytest.mark.parametrize(
    "value", ["chat.example", "https://chat.example/", "https://u@chat.example", "*", "null", ","]
)
def test_an_origin_is_a_scheme_and_a_host(value: str) -> None:
    assert "is not origins like" in refusal(ALLOWED_ORIGINS=value)
    given = {"MESSENGER_ALLOWED_ORIGINS": "https://Chat.example, http://localhost:3000"}
    allowed = load(given, needs=()).allowed_origins
    assert allowed == "https://chat.example,http://localhost:3000"


def test_an_empty_variable_counts_as_unset() -> None:
    assert load({"MESSENGER_PORT": ""}, needs=()).port == 8080
