"""Tokens: short-lived signed access tokens (JWT, HS256) and opaque refresh tokens.

An access token says who and in which session; whether that session has ended since is not in
it (`infra.sessions`). A refresh token names its session, 32 random bytes, and a keyed
hash of both, so that an old token of ours can be told from a made-up one: only the former
ends its session.
"""

import hashlib
import hmac
import os
import re
from base64 import urlsafe_b64encode
from typing import NamedTuple

import jwt

from domain.ids import UserId
from infra.keyring import Secret

ALGORITHM = "HS256"
RANDOM_BYTES = 32
MAX_CACHED_TOKENS = 20_000
MAX_TOKEN_CHARACTERS = 1_024

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_REFRESH = re.compile(rf"({_UUID})\.([A-Za-z0-9_-]{{43}})\.([0-9a-f]{{48}})")


class Caller(NamedTuple):
    """Who an access token speaks for, until when (seconds since 1970)."""

    user_id: UserId
    session_id: str
    expires_at: int


class RefreshToken(NamedTuple):
    session_id: str
    text: str

    @property
    def hash(self) -> bytes:
        return hashlib.sha256(self.text.encode()).digest()


class Tokens:
    """Makes tokens, and tells those that it made."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret
        self._key = secret.derive("access tokens")
        self._verified: dict[str, Caller] = {}

    def access(self, caller: Caller, *, issued_at: int) -> str:
        claims = {
            "sub": caller.user_id,
            "sid": caller.session_id,
            "iat": issued_at,
            "exp": caller.expires_at,
        }
        return jwt.encode(claims, self._key, ALGORITHM)

    def caller(self, token: str, *, now: float) -> Caller | None:
        """None if the token is not ours, was changed, or is over."""
        caller = self._verified.get(token) or self._verify(token)
        return caller if caller is not None and now < caller.expires_at else None

    def refresh(self, session_id: str) -> RefreshToken:
        random = urlsafe_b64encode(os.urandom(RANDOM_BYTES)).rstrip(b"=").decode()
        return RefreshToken(session_id, f"{session_id}.{random}.{self._tag(session_id, random)}")

    def read_refresh(self, text: str) -> RefreshToken | None:
        """None if it never was a refresh token of ours."""
        match = _REFRESH.fullmatch(text)
        if match is None:
            return None
        session_id, random, tag = match.groups()
        if not hmac.compare_digest(tag, self._tag(session_id, random)):
            return None
        return RefreshToken(session_id, text)

    def sign(self, purpose: str, text: str) -> str:
        """What only this installation can make of it."""
        return self._secret.blind(purpose, text.encode())

    def _tag(self, session_id: str, random: str) -> str:
        return self._secret.blind("refresh token", f"{session_id}.{random}".encode())

    def _verify(self, token: str) -> Caller | None:
        if len(token) > MAX_TOKEN_CHARACTERS:
            return None
        try:
            claims = jwt.decode(
                token,
                self._key,
                [ALGORITHM],
                options={"require": ["sub", "sid", "iat", "exp"], "verify_iat": False},
            )
        except jwt.InvalidTokenError:
            return None
        caller = Caller(UserId(claims["sub"]), claims["sid"], claims["exp"])
        if len(self._verified) >= MAX_CACHED_TOKENS:
            del self._verified[next(iter(self._verified))]
        self._verified[token] = caller
        return caller
