"""One event of each type with every field filled, and the keys that seal their golden files.

`python -m tests.golden.examples` writes the golden files that are missing. One that is there
is never written again: it stands for what is in logs already. A changed event gets a new
version, an upcaster and a file of its own.
"""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from domain.attachment import AttachmentRemoved, AttachmentUploaded
from domain.chat import (
    DirectChatOpened,
    GroupCreated,
    GroupDeleted,
    GroupUpdated,
    MemberLeft,
    MemberRemoved,
    MembersAdded,
    OwnershipTransferred,
    RoleChanged,
)
from domain.contact import (
    ContactAccepted,
    ContactBlocked,
    ContactRemoved,
    ContactRequested,
    ContactUnblocked,
    Standing,
)
from domain.event import Event
from domain.ids import AttachmentId, ChatId, GatewayId, MessageId, UserId
from domain.message import (
    MessageDeleted,
    MessageEdited,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
    SystemMessageSent,
)
from domain.receipt import DeliveriesRecorded, DeliveryMark, MessagesDelivered, MessagesRead
from domain.user import (
    AccountDeleted,
    PasswordChanged,
    ProfileUpdated,
    StatusChanged,
    UserRegistered,
)
from infra import codec
from infra.keyring import KeyId, Keyring

DIRECTORY = Path(__file__).parent / "events"

ANNA = UserId("01990000-0000-7000-8000-00000000a11a")
BEN = UserId("01990000-0000-7000-8000-000000000be1")
CHAT = ChatId("01990000-0000-7000-8000-0000000000c1")
MESSAGE = MessageId("01990000-0000-7000-8000-0000000000d1")
EARLIER = MessageId("01990000-0000-7000-8000-0000000000d0")
ATTACHMENT = AttachmentId("01990000-0000-7000-8000-0000000000e1")
GATEWAY = GatewayId("01990000-0000-7000-8000-00000000009a")

THEN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
LATER = datetime(2026, 1, 3, 4, 5, 6, tzinfo=UTC)
BETWEEN = Standing(requested_by=ANNA, requested_at=THEN, accepted_at=LATER, blocked_at={BEN: LATER})

EXAMPLES: tuple[Event, ...] = (
    UserRegistered(
        user_id=ANNA,
        username="anna",
        display_name="Anna Ångström",
        password_hash="$2b$12$0123456789012345678901234567890123456789012345678901",
    ),
    ProfileUpdated(user_id=ANNA, display_name="Anna 安娜", avatar_url="https://example.org/anna"),
    PasswordChanged(user_id=ANNA, password_hash="$2b$12$another"),
    StatusChanged(user_id=ANNA, status="away"),
    AccountDeleted(user_id=ANNA, erase_messages=True),
    ContactRequested(user_id=ANNA, contact_id=BEN, standing=BETWEEN),
    ContactAccepted(user_id=BEN, contact_id=ANNA, standing=BETWEEN),
    ContactRemoved(user_id=ANNA, contact_id=BEN, standing=BETWEEN),
    ContactBlocked(user_id=BEN, contact_id=ANNA, standing=BETWEEN),
    ContactUnblocked(user_id=BEN, contact_id=ANNA, standing=BETWEEN),
    DirectChatOpened(chat_id=CHAT, by=BEN, user_ids=[ANNA, BEN], slug=f"direct-{ANNA}-{BEN}"),
    GroupCreated(
        chat_id=CHAT,
        owner_id=ANNA,
        member_ids=[BEN],
        name="Friends",
        slug="friends",
        avatar_url="https://example.org/friends",
    ),
    GroupUpdated(
        chat_id=CHAT,
        by=ANNA,
        name="Good friends",
        slug="good-friends",
        avatar_url="https://example.org/good",
    ),
    GroupDeleted(chat_id=CHAT, by=ANNA),
    MembersAdded(chat_id=CHAT, by=ANNA, user_ids=[BEN]),
    MemberRemoved(chat_id=CHAT, by=ANNA, user_id=BEN),
    MemberLeft(chat_id=CHAT, user_id=BEN),
    RoleChanged(chat_id=CHAT, by=ANNA, user_id=BEN, role="admin"),
    OwnershipTransferred(chat_id=CHAT, from_id=ANNA, to_id=BEN),
    AttachmentUploaded(
        attachment_id=ATTACHMENT,
        chat_id=CHAT,
        message_id=MESSAGE,
        sender_id=ANNA,
        file_name="Ferien 休暇.jpg",
        file_type="image/jpeg",
        file_size=123_456,
        width=2048,
        height=1536,
        store="https://objects.example.org/messenger",
    ),
    AttachmentRemoved(attachment_id=ATTACHMENT),
    MessageSent(
        message_id=MESSAGE,
        chat_id=CHAT,
        sender_id=ANNA,
        content="Hello, 世界 👋",
        formatting={"bold": [(0, 5)], "code": [(7, 9), (10, 11)]},
        reply_to_id=EARLIER,
        attachment_ids=[ATTACHMENT],
    ),
    MessageEdited(
        message_id=MESSAGE,
        chat_id=CHAT,
        sender_id=ANNA,
        content="héllo, edited",
        formatting={"italic": [(0, 5)]},
    ),
    MessageDeleted(message_id=MESSAGE, chat_id=CHAT, by=BEN, sent_position=7),
    ReactionAdded(message_id=MESSAGE, chat_id=CHAT, user_id=BEN, emoji="👍🏽"),
    ReactionRemoved(message_id=MESSAGE, chat_id=CHAT, user_id=BEN, emoji=":tada:"),
    SystemMessageSent(
        message_id=MESSAGE,
        chat_id=CHAT,
        kind="group_renamed",
        actor_id=ANNA,
        user_ids=[BEN],
        name="Good friends",
    ),
    MessagesDelivered(chat_id=CHAT, user_id=BEN, delivered_up_to=7, read_up_to=5),
    MessagesRead(chat_id=CHAT, user_id=BEN, delivered_up_to=7, read_up_to=7),
    DeliveriesRecorded(
        gateway_id=GATEWAY,
        chat_id=CHAT,
        marks=[
            DeliveryMark(user_id=ANNA, after=3, up_to=7),
            DeliveryMark(user_id=BEN, after=0, up_to=5),
        ],
    ),
)


class FixedKeys(Keyring):
    """Keys that are a function of user and purpose, for files that must open for ever."""

    def __init__(self) -> None:
        self.destroyed: set[KeyId] = set()

    def cipher(self, key_id: KeyId) -> AESGCM | None:
        if key_id in self.destroyed:
            return None
        return AESGCM(hashlib.sha256(f"{key_id.user_id} {key_id.purpose}".encode()).digest())


def golden_file(event: type[Event] | Event) -> Path:
    return DIRECTORY / f"{event.type}.v{event.version}.json"


def write_missing() -> None:
    for example in EXAMPLES:
        path = golden_file(example)
        if not path.exists():
            path.write_bytes(codec.encode(example, FixedKeys()) + b"\n")


if __name__ == "__main__":
    write_missing()
