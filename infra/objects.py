"""The object store, spoken to as S3: what is put there, what is removed, and who may read it.

Nobody reads an object but by an address that we signed, for an hour, when it was asked for; the
store itself refuses one that is altered, expired or not signed. Signing asks nobody, so that reads
go on without the store. What needs the store raises Unavailable while it does not answer. A put
has been confirmed when it returns; a removal may be done again.
"""

import asyncio
import urllib.parse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, MinioException, S3Error
from minio.signer import presign_v4

from infra import clock
from infra.errors import Unavailable
from infra.settings import Settings

T = TypeVar("T")

SIGNED_SECONDS = 3_600
THREADS = 4
MAX_WAITING = 256
CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 10.0
# What a store answers when it asks to be asked again; whatever we ask may be done twice.
ASK_AGAIN_STATUSES = (500, 502, 503, 504)
ASKED_AGAIN = 3
ASK_AGAIN_BACKOFF_SECONDS = 0.1
# An object is put in one request: parts that were left half-way nobody would see.
WHOLE_BYTES = 16 * 1024 * 1024
READ_BYTES = 256 * 1024
REMOVED_AT_ONCE = 1_000  # as many as S3 takes

_UNREACHABLE = (MinioException, urllib3.exceptions.HTTPError, OSError, ValueError)


class Signed(NamedTuple):
    """An address that anybody may read until `expires_at`."""

    url: str
    expires_at: datetime


class Objects:
    """One bucket of the store; for use as a context manager. Opens nothing until it must."""

    def __init__(self, settings: Settings, *, signed_seconds: int = SIGNED_SECONDS) -> None:
        self._bucket = settings.s3_bucket
        self._region = settings.s3_region
        self._credentials = Credentials(settings.s3_access_key, settings.s3_secret_key)
        self._signed_for = timedelta(seconds=signed_seconds)
        public = settings.s3_public_endpoint or settings.s3_endpoint
        self._public = f"{public.rstrip('/')}/{self._bucket}/"
        self._http = urllib3.PoolManager(
            maxsize=THREADS,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=ANSWER_SECONDS),
            retries=_retries(),
            ca_certs=settings.s3_ca and str(settings.s3_ca),  # beside none: who the system trusts
        )
        self._client = _client(settings, self._http)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="objects")
        self._waiting = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        self._http.clear()

    def plain_url(self, key: str) -> str:
        """The object's address, which says where it is and opens nothing."""
        return self._public + key

    def signed(self, key: str) -> Signed:
        now = clock.now().replace(microsecond=0)  # as the store counts
        signed = presign_v4(
            method="GET",
            url=urllib.parse.urlsplit(self._public + urllib.parse.quote(key)),
            region=self._region,
            credentials=self._credentials,
            date=now,
            expires=int(self._signed_for.total_seconds()),
        )
        return Signed(urllib.parse.urlunsplit(signed), now + self._signed_for)

    async def put(self, key: str, file: Path, content_type: str) -> None:
        """Raises Unavailable, and then it may be there or not."""
        put = partial(
            self._client.fput_object,
            self._bucket,
            key,
            str(file),
            content_type=content_type,
            part_size=WHOLE_BYTES,
        )
        await self._ask(put)

    async def get(self, key: str, file: Path) -> bool:
        """Into the file; False if there is no such object. Raises Unavailable."""
        return await self._ask(partial(self._get, key, file))

    async def remove(self, keys: Sequence[str]) -> None:
        """What is not there counts as removed. Raises Unavailable."""
        for first in range(0, len(keys), REMOVED_AT_ONCE):
            await self._ask(partial(self._remove, keys[first : first + REMOVED_AT_ONCE]))

    async def below(self, prefix: str, limit: int) -> list[str]:
        """Keys that begin with the prefix, `limit` at most. Raises Unavailable."""
        return await self._ask(partial(self._below, prefix, limit))

    def _get(self, key: str, file: Path) -> bool:
        try:
            answer = self._client.get_object(self._bucket, key)
        except (S3Error, InvalidResponseError):
            # How that is said of what is not there, differs from store to store.
            if key not in self._below(key, 1):
                return False
            raise
        try:
            with file.open("wb") as opened:
                for part in answer.stream(READ_BYTES):
                    opened.write(part)
        finally:
            answer.close()
            answer.release_conn()
        return True

    def _remove(self, keys: Sequence[str]) -> None:
        wanted = [DeleteObject(key) for key in keys]
        for error in self._client.remove_objects(self._bucket, wanted):
            if error.code != "NoSuchKey":
                raise Unavailable(f"the object store does not remove: {error.code}")

    def _below(self, prefix: str, limit: int) -> list[str]:
        found = self._client.list_objects(self._bucket, prefix=prefix, recursive=True)
        return [item.object_name or "" for item in islice(found, limit)]

    async def _ask(self, work: Callable[[], T]) -> T:
        if self._waiting >= MAX_WAITING:
            raise Unavailable("too much waits for the object store")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except _UNREACHABLE as error:
            raise Unavailable(_reason(error)) from error
        finally:
            self._waiting -= 1


def _retries() -> urllib3.Retry:
    """Only of what was answered: a store that does not answer is told of at once."""
    return urllib3.Retry(
        total=None,
        connect=0,
        read=0,
        redirect=0,
        other=0,
        status=ASKED_AGAIN,
        allowed_methods=None,
        status_forcelist=ASK_AGAIN_STATUSES,
        backoff_factor=ASK_AGAIN_BACKOFF_SECONDS,
        raise_on_status=False,
    )


def _client(settings: Settings, http: Any) -> Minio:
    endpoint = urllib.parse.urlsplit(settings.s3_endpoint)
    return Minio(
        endpoint.netloc,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
        secure=endpoint.scheme == "https",
        region=settings.s3_region,  # else it would ask for it first
        http_client=http,
    )


def _reason(error: Exception) -> str:
    """Without the store's address and keys: callers get to see it."""
    match error:
        case S3Error():
            return f"the object store refuses: {error.code}"
        case InvalidResponseError() if "NoSuchBucket" in str(error):
            return "the object store has no such bucket"
        case InvalidResponseError():
            return "the object store answers with an error"
        case _:
            return f"the object store does not answer: {type(error).__name__}"
