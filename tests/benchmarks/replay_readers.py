"""Readers that know what they must see, a process of their own, until its stdin ends.

Each is a thread with a chat of two that nobody else writes to: what it was acknowledged, and at
which position, says of every answer what is in it as of the position that the answer states. An
answer that says less (or more) is a half one. Each reader has its next time to ask, and what it
takes counts from that time; only what it reads with `Min-Log-Position`, right after its own
message, counts from when it asks. Reads a `Plan` on its stdin's first line, and answers a
`Result`.
"""

import http.client
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

TIMEOUT_SECONDS = 30.0
PAGE = 50
MAX_TOLD = 5
OWN = "own message"  # read with the position that its sending answered
RARE = "armadillo"


class Chat(msgspec.Struct, frozen=True):
    """Of a sender and a peer who reads nothing of it, with what was sent in it until now: among it
    one message that the peer liked, and alone has RARE in it."""

    chat_id: str
    sender_id: str
    token: str
    peer_token: str
    liked_id: str
    positions: list[int]


class Plan(msgspec.Struct, frozen=True):
    url: str
    chats: list[Chat]
    per_second: float


class Read(msgspec.Struct, frozen=True, array_like=True):
    """`at`: when it was due, of the clock that all processes of a machine share."""

    kind: str
    at: float
    seconds: float


class Result(msgspec.Struct, frozen=True):
    reads: list[Read]
    sent: int
    failed: int
    half: int
    told: list[str]


class Answer(NamedTuple):
    status: int
    position: int
    body: Any


class Expected(NamedTuple):
    """So many messages of the chat were there at the position of an answer, so many are there.

    Read models that an answer uses may be further than its position, each for itself.
    """

    then: int
    now: int

    def allows(self, count: int) -> bool:
        return self.then <= count <= self.now


class Reader:
    def __init__(self, url: str, chat: Chat) -> None:
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(
            address.hostname or "", address.port, timeout=TIMEOUT_SECONDS
        )
        self._chat = chat
        self._positions = list(chat.positions)
        self.reads: list[Read] = []
        self.told: list[str] = []
        self.sent = self.failed = self.half = 0

    def run(self, stopped: threading.Event, kinds: list[str], due: float, every: float) -> None:
        for kind in cycle(kinds):
            if stopped.wait(max(0.0, due - time.monotonic())):
                return
            if kind == OWN:
                self._send()
                self._look(OWN, time.monotonic(), min_position=self._positions[-1])
                # That it waited for its position keeps nobody waiting: what was due is left out.
                due += every * max(0, (time.monotonic() - due) // every)
            else:
                self._look(kind, due)
            due += every

    def _send(self) -> None:
        body = msgspec.json.encode({"chat_id": self._chat.chat_id, "content": "once more"})
        answer = self._ask("POST", "/v1/commands/send-message", self._chat.token, body=body)
        if answer is None or answer.status != 200:
            self._fail("send-message", answer)
            return
        self.sent += 1
        self._positions.append(answer.body["position"])

    def _look(self, kind: str, at: float, *, min_position: int = 0) -> None:
        is_own = kind == OWN
        path, is_of_peer, finds = KINDS["messages" if is_own else kind]
        path = path.format(chat=self._chat.chat_id, liked=self._chat.liked_id)
        token = self._chat.peer_token if is_of_peer else self._chat.token
        answer = self._ask("GET", path, token, min_position=min_position)
        self.reads.append(Read(kind, at, time.monotonic() - at))
        if answer is None or answer.status != 200:
            self._fail(path, answer)
        elif answer.position < min_position or not finds(
            self._expected(answer), answer, self._chat
        ):
            self.half += 1
            self._tell(f"half: {path} as of {answer.position}: {str(answer.body)[:300]}")

    def _expected(self, answer: Answer) -> Expected:
        return Expected(bisect_right(self._positions, answer.position), len(self._positions))

    def _ask(
        self, method: str, path: str, token: str, *, body: bytes = b"", min_position: int = 0
    ) -> Answer | None:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        if min_position:
            headers["Min-Log-Position"] = str(min_position)
        try:
            self._connection.request(method, path, body or None, headers)
            response = self._connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return None
        position = int(response.headers.get("Log-Position", "0"))
        return Answer(response.status, position, msgspec.json.decode(text))

    def _fail(self, path: str, answer: Answer | None) -> None:
        self.failed += 1
        self._tell(f"failed: {path}: {answer}")

    def _tell(self, text: str) -> None:
        if len(self.told) < MAX_TOLD:
            self.told.append(text)


def _page(expected: Expected, answer: Answer, _: Chat) -> bool:
    """The first of a chat's messages has seq 1, and nothing else is in this one."""
    seqs = [item["seq"] for item in answer.body["items"]]
    newest = seqs[0] if seqs else 0
    return expected.allows(newest) and seqs == list(range(newest, max(0, newest - PAGE), -1))


def _unread(expected: Expected, answer: Answer, chat: Chat) -> bool:
    counts = {item["chat_id"]: item["count"] for item in answer.body["items"]}
    return (
        counts.get(chat.chat_id) == expected.then
        and answer.body["messages"] == sum(counts.values())
        and answer.body["chats"] == len(counts)
    )


def _chats(expected: Expected, answer: Answer, chat: Chat) -> bool:
    (found,) = answer.body["items"] or [None]
    return (
        found is not None
        and expected.allows(found["unread_count"])
        and expected.allows(found["last_message"]["seq"])
    )


def _state(expected: Expected, answer: Answer, chat: Chat) -> bool:
    """As of one position, whatever it uses."""
    then = expected._replace(now=expected.then)
    return (
        answer.body["position"] == answer.position
        and _chats(then, answer._replace(body={"items": answer.body["chats"]}), chat)
        and answer.body["unread"]["messages"] == expected.then
        and len(answer.body["contacts"]) == 1
    )


def _delivery(_: Expected, answer: Answer, __: Chat) -> bool:
    return answer.body["recipients"] == len(answer.body["items"]) == 1


def _me(_: Expected, answer: Answer, chat: Chat) -> bool:
    return bool(answer.body["id"] == chat.sender_id)


def _one(_: Expected, answer: Answer, __: Chat) -> bool:
    return len(answer.body["items"]) == 1


# What is asked, whether by the peer, and what has to be in the answer. Every read model is in one.
KINDS: dict[str, tuple[str, bool, Callable[[Expected, Answer, Chat], bool]]] = {
    "messages": ("/v1/chats/{chat}/messages", False, _page),
    "unread": ("/v1/unread", True, _unread),
    "chats": ("/v1/chats", True, _chats),
    "delivery": ("/v1/messages/{liked}/delivery", False, _delivery),
    "state": ("/v1/state", True, _state),
    "reactions": ("/v1/messages/{liked}/reactions", False, _one),
    "contacts": ("/v1/contacts", False, _one),
    "me": ("/v1/users/me", False, _me),
    "search": (f"/v1/search/messages?q={RARE}", False, _one),
}


def _turned(count: int) -> list[str]:
    kinds = [*KINDS, OWN]
    return kinds[count % len(kinds) :] + kinds[: count % len(kinds)]


def run(plan: Plan, stopped: threading.Event) -> Result:
    readers = [Reader(plan.url, chat) for chat in plan.chats]
    every = len(readers) / plan.per_second
    began = time.monotonic()
    with ThreadPoolExecutor(len(readers)) as threads:
        running = [
            # Not all of them at once, nor all for the same.
            threads.submit(one.run, stopped, _turned(n), began + n * every / len(readers), every)
            for n, one in enumerate(readers)
        ]
        for each in running:
            each.result()
    return Result(
        reads=[read for one in readers for read in one.reads],
        sent=sum(one.sent for one in readers),
        failed=sum(one.failed for one in readers),
        half=sum(one.half for one in readers),
        told=[text for one in readers for text in one.told][:MAX_TOLD],
    )


def _until_stdin_ends(stopped: threading.Event) -> None:
    sys.stdin.buffer.read()
    stopped.set()


if __name__ == "__main__":
    given = msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan)
    told = threading.Event()
    threading.Thread(target=_until_stdin_ends, args=(told,), daemon=True).start()
    sys.stdout.buffer.write(msgspec.json.encode(run(given, told)))
