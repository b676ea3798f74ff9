"""What is no secret: what documents, examples and development use, and what hands type."""

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


def is_known(key: str) -> bool:
    return key.lower() in KNOWN_KEYS or any(word in key.lower() for word in PLACEHOLDERS)
