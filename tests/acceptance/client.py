"""The messenger as somebody outside meets it: people who command and look, over HTTP alone.

A look waits for everybody's last command (Min-Log-Position), so a test never waits by itself.
Tables are read only where data-model.md's rule is about rows (contract.md, section 6).
"""

import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from threading import Barrier, Lock
from typing import Any, LiteralString, NamedTuple
from uuid import uuid4

import httpx
import psycopg
from PIL import Image
from psycopg.rows import dict_row

PASSWORD = "correct horse"
TIMEOUT_SECONDS = 60.0  # nothing is judged by it: the machine may be busy with other things
POLL_SECONDS = 0.01
# Until every API process knows that a session has ended (contract.md, section 3).
SESSION_END_SECONDS = 1.0

BEHIND = """
    SELECT projection
    FROM projection_checkpoints
    WHERE position < %(position)s
"""

Json = dict[str, Any]


class Answered(NamedTuple):
    """What came back; `said` is `200`, or the status with the problem's code."""

    status: int
    body: Json

    @property
    def said(self) -> str:
        code = self.body.get("code") if self.status >= 400 else None
        return f"{self.status} {code}" if code else str(self.status)

    def good(self) -> Json:
        assert self.status < 400, self.body
        return self.body


class Messenger:
    """The running system, and the position that everybody has heard of."""

    def __init__(self, run: Json, http: httpx.Client, database: psycopg.Connection[Any]) -> None:
        self.run = run
        self._http = http
        self._database = database
        self.position = 0
        self._reaching = Lock()

    def person(self, name: str = "somebody", **fields: Any) -> "Person":
        return self.people(name, **fields)[0]

    def people(self, *names: str, **fields: Any) -> "list[Person]":
        """New accounts; each name gets an ending of its own. They log in when they need to."""
        made = [Person(self, f"{name}_{uuid4().hex[:12]}", new_id()) for name in names]
        bodies = [person.registration | fields for person in made]
        self.batch(None, *(("register-user", body) for body in bodies))
        return made

    def batch(self, token: str | None, *commands: tuple[str, Json]) -> list[Json]:
        """Commands in one request; all are good."""
        body = {"commands": [{"name": name, "data": data} for name, data in commands]}
        results: list[Json] = self.request("POST", "/v1/commands", token, json=body).good()[
            "results"
        ]
        assert not [result for result in results if "problem" in result], results
        return results

    def request(
        self,
        method: str,
        path: str,
        token: str | None,
        *,
        key: str | None = None,
        http: httpx.Client | None = None,
        **content: Any,
    ) -> Answered:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= {"Idempotency-Key": key} if key else {}
        headers |= {"Min-Log-Position": str(self.position)} if method == "GET" else {}
        response = (http or self._http).request(method, path, headers=headers, **content)
        is_json = "json" in response.headers.get("content-type", "")
        answered = Answered(response.status_code, response.json() if is_json else {})
        if method in ("POST", "PUT") and response.is_success:
            self._reach(int(response.headers.get("log-position", 0)))
        return answered

    def _reach(self, position: int) -> None:
        with self._reaching:
            self.position = max(self.position, position)

    def rows(self, query: LiteralString, **arguments: Any) -> list[Json]:
        """Rows of the read models, once all are at the position."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while behind := self._select(BEHIND, {"position": self.position}):
            assert time.monotonic() < deadline, f"still behind: {behind}"
            time.sleep(POLL_SECONDS)
        return self._select(query, arguments)

    def row(self, query: LiteralString, **arguments: Any) -> Json:
        [only] = self.rows(query, **arguments)
        return only

    def _select(self, query: LiteralString, arguments: Json) -> list[Json]:
        return self._database.execute(query, arguments).fetchall()


class Person:
    """A user; signs in with the first request."""

    def __init__(self, messenger: Messenger, username: str, user_id: str) -> None:
        self.messenger = messenger
        self.username = username
        self.id = user_id

    @property
    def registration(self) -> Json:
        return {"username": self.username, "password": PASSWORD, "user_id": self.id}

    @cached_property
    def session(self) -> Json:
        return self.log_in().good()

    @property
    def token(self) -> str:
        token: str = self.session["access_token"]
        return token

    def log_in(self, password: str = PASSWORD) -> Answered:
        body = {"username": self.username, "password": password}
        return self.messenger.request("POST", "/v1/sessions", None, json=body)

    def ask(self, command: str, /, **data: Any) -> Answered:
        return self.messenger.request("POST", f"/v1/commands/{command}", self.token, json=data)

    def do(self, command: str, /, **data: Any) -> Json:
        return self.ask(command, **data).good()

    def do_all(self, *commands: tuple[str, Json]) -> list[Json]:
        return self.messenger.batch(self.token, *commands)

    def refused(self, command: str, /, **data: Any) -> str:
        """Why not, as status and code."""
        return self.ask(command, **data).said

    def look(self, path: str, /, **parameters: Any) -> Answered:
        return self.messenger.request("GET", path, self.token, params=parameters)

    def see(self, path: str, /, **parameters: Any) -> Json:
        return self.look(path, **parameters).good()

    def items(self, path: str, /, **parameters: Any) -> list[Json]:
        items: list[Json] = self.see(path, **parameters)["items"]
        return items

    # What tests do over and over

    def delete_account(self, **fields: Any) -> None:
        """And no process takes the token any more."""
        self.do("delete-account", password=PASSWORD, **fields)
        time.sleep(SESSION_END_SECONDS)

    def befriend(self, *others: "Person") -> None:
        for other in others:
            self.do("request-contact", user_id=other.id)
            other.do("accept-contact", user_id=self.id)

    def chat_with(self, other: "Person") -> str:
        """A direct chat, befriending first."""
        self.befriend(other)
        chat_id: str = self.do("open-direct-chat", user_id=other.id)["chat_id"]
        return chat_id

    def group(self, *members: "Person", name: str = "Friends", **fields: Any) -> str:
        ids = [member.id for member in members]
        chat_id: str = self.do("create-group", name=name, member_ids=ids, **fields)["chat_id"]
        return chat_id

    def say(self, chat_id: str, content: str = "hello", **fields: Any) -> str:
        sent = self.do("send-message", chat_id=chat_id, content=content, **fields)
        message_id: str = sent["message_id"]
        return message_id

    def upload(self, chat_id: str, message_id: str, image: bytes, **fields: Any) -> Json:
        return self.ask_upload(chat_id, message_id, image, **fields).good()

    def ask_upload(
        self, chat_id: str, message_id: str, image: bytes, name: str = "cat.png"
    ) -> Answered:
        return self.messenger.request(
            "POST",
            "/v1/attachments",
            self.token,
            data={"chat_id": chat_id, "message_id": message_id},
            files={"file": (name, image)},
        )

    def show(self, chat_id: str, *images: bytes, content: str = "") -> str:
        """A message with images."""
        message_id = new_id()
        uploads = [self.upload(chat_id, message_id, image) for image in images]
        ids = [upload["attachment_id"] for upload in uploads]
        return self.say(chat_id, content, message_id=message_id, attachment_ids=ids)

    def set_avatar(self, image: bytes, of: str = "users/me") -> Answered:
        """One's own, or a chat's (`chats/ID`)."""
        path = f"/v1/{of}/avatar"
        return self.messenger.request("PUT", path, self.token, files={"file": ("me.png", image)})

    def message(self, message_id: str) -> Json:
        return self.see(f"/v1/messages/{message_id}")

    def messages(self, chat_id: str) -> list[Json]:
        """The newest page, oldest of it first."""
        return self.items(f"/v1/chats/{chat_id}/messages")[::-1]

    def roles(self, chat_id: str) -> dict[str, str]:
        participants = self.items(f"/v1/chats/{chat_id}/participants")
        return {participant["user"]["id"]: participant["role"] for participant in participants}

    def contact(self, other: "Person") -> Json | None:
        """What the caller's own list says of the other."""
        found = [item for item in self.items("/v1/contacts") if item["user"]["id"] == other.id]
        return found[0] if found else None

    def unread(self, chat_id: str) -> int:
        counts = {item["chat_id"]: item["count"] for item in self.items("/v1/unread")}
        count: int = counts.get(chat_id, 0)
        return count


def picture(
    kind: str = "PNG",
    size: tuple[int, int] = (60, 40),
    colour: tuple[int, int, int] = (200, 30, 60),
) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def new_id() -> str:
    return str(uuid4())


@contextmanager
def connected(run: Json) -> Iterator[Messenger]:
    with (
        httpx.Client(base_url=run["api_url"], timeout=TIMEOUT_SECONDS) as http,
        psycopg.connect(run["database_url"], autocommit=True, row_factory=dict_row) as database,
    ):
        yield Messenger(run, http, database)


def at_once(messenger: Messenger, *asked: tuple[Person, str, Json]) -> list[Answered]:
    """The commands at the same moment, each over a connection of its own: with two API
    processes behind one port, likely in different ones."""
    barrier = Barrier(len(asked))
    for person, *_ in asked:
        assert person.token

    def ask(person: Person, command: str, data: Json) -> Answered:
        with httpx.Client(base_url=messenger.run["api_url"], timeout=TIMEOUT_SECONDS) as http:
            messenger.request("GET", "/health/live", None, http=http)
            barrier.wait(TIMEOUT_SECONDS)
            path = f"/v1/commands/{command}"
            return messenger.request("POST", path, person.token, http=http, json=data)

    with ThreadPoolExecutor(len(asked)) as threads:
        started = [threads.submit(ask, *one) for one in asked]
        return [one.result(TIMEOUT_SECONDS) for one in started]
