"""Uploading, sending and removing attachments, as far as it is decided.

Rules: data-model.md, entity 6; contract.md, sections 2 and 3.
"""

from typing import Any

import msgspec
import pytest

from commands.command import Command, Decision
from commands.edit_message import EditMessage
from commands.remove_attachment import RemoveAttachment
from commands.send_message import SendMessage, Sent
from commands.upload_attachment import StoredImage, UploadAttachment
from domain.attachment import SIZES, AttachmentRemoved, AttachmentUploaded
from domain.chat import MemberRemoved
from domain.ids import UserId, attachment_stream, message_stream
from domain.message import MessageEdited, MessageSent
from domain.refusals import Blocked, Conflict, Forbidden, Invalid, NotContacts, NotFound
from tests.commands.history import (
    ANNA,
    BEN,
    CARL,
    CHAT,
    DORA,
    MESSAGE,
    NOW,
    OTHER_CHAT,
    History,
    attachment_id,
    contact,
    deleted,
    direct,
    given,
    group,
    message_id,
    people,
    sent,
    uploaded,
)

ONE, TWO = attachment_id(1), attachment_id(2)


def chat(*uploads: AttachmentUploaded) -> History:
    """Anna's two chats with Ben; Carl is in the first."""
    return given(
        *people(ANNA, BEN, CARL, DORA),
        group(BEN, CARL),
        group(BEN, chat=OTHER_CHAT, slug="others"),
        *uploads,
    )


def image(number: int = 1) -> StoredImage:
    event = uploaded(number)
    return StoredImage(**{name: getattr(event, name) for name in StoredImage.__struct_fields__})


def upload(image: StoredImage | None = None, **fields: Any) -> UploadAttachment:
    return UploadAttachment(**{"chat_id": CHAT, "message_id": MESSAGE, "image": image} | fields)


def send(*attachments: Any, **fields: Any) -> SendMessage:
    body = {"chat_id": CHAT, "message_id": MESSAGE, "content": ""}
    return SendMessage(**body | {"attachment_ids": list(attachments)} | fields)


def with_images(*attachments: Any, content: str = "") -> MessageSent:
    return msgspec.structs.replace(sent(1, content=content), attachment_ids=list(attachments))


# upload-attachment


def test_an_upload_belongs_to_its_chat_message_and_sender() -> None:
    assert chat().when(upload(image()), by=BEN) == Decision([uploaded(1)])


def test_whether_an_upload_would_be_allowed_can_be_asked_before() -> None:
    assert chat().when(upload(), by=BEN) == Decision([])
    with pytest.raises(NotFound):
        chat().when(upload(), by=DORA)


def test_the_keys_are_the_contracts() -> None:
    assert all(uploaded(1).key(size).startswith(uploaded(1).key_prefix) for size in SIZES)
    assert [uploaded(1).key(size) for size in SIZES] == [
        f"{CHAT}/{MESSAGE}/{ONE}_{size}.png" for size in ("original", "medium", "thumbnail")
    ]


@pytest.mark.parametrize("by", [DORA, BEN], ids=["a stranger", "a removed member"])
def test_only_participants_upload(by: UserId) -> None:
    history = chat().record(MemberRemoved(chat_id=CHAT, by=ANNA, user_id=BEN))
    with pytest.raises(NotFound):
        history.when(upload(image()), by=by)


def test_a_deleted_account_uploads_nothing() -> None:
    with pytest.raises(NotFound):
        chat().record(deleted(BEN)).when(upload(image()), by=BEN)


@pytest.mark.parametrize(
    ("between", "refusal"),
    [([], NotContacts), ([contact(BEN, CARL, blocked_by=[CARL])], Blocked)],
    ids=["no contacts", "blocked"],
)
def test_who_may_not_send_in_a_direct_chat_uploads_nothing(
    between: list[Any], refusal: type[Exception]
) -> None:
    opened = direct(BEN, CARL)
    with pytest.raises(refusal):
        chat().record(opened, *between).when(upload(image(), chat_id=opened.chat_id), by=BEN)


def test_attachments_come_before_the_message() -> None:
    with pytest.raises(Conflict):
        chat().record(sent(1)).when(upload(image()), by=BEN)


def test_an_attachment_is_uploaded_once() -> None:
    with pytest.raises(Conflict):
        chat(uploaded(1)).when(upload(image(), message_id=message_id(2)), by=BEN)


def test_an_upload_and_its_message_can_not_cross() -> None:
    """The upload guards that there is no message yet, the message what it takes."""
    assert chat().used(upload(image()), by=BEN)[message_stream(MESSAGE)] == 0
    assert chat(uploaded(1)).used(send(ONE), by=BEN)[attachment_stream(ONE)] == 1


# send-message


def test_a_message_is_sent_with_its_attachments_in_their_order() -> None:
    history = chat(uploaded(1), uploaded(2))
    assert history.when(send(TWO, ONE), by=BEN) == Decision(
        [with_images(TWO, ONE)], Sent(message_id=MESSAGE, created_at=NOW)
    )


def test_text_and_attachments_go_together() -> None:
    [event] = chat(uploaded(1)).when(send(ONE, content="look"), by=BEN).events
    assert event == with_images(ONE, content="look")


def test_sent_again_with_the_same_attachments_it_is_the_same_message() -> None:
    history = chat(uploaded(1), uploaded(2)).record(with_images(ONE, TWO))
    assert history.when(send(ONE, TWO), by=BEN).events == []
    for other in (send(TWO, ONE), send(ONE), send(ONE, TWO, content="hello")):
        with pytest.raises(Conflict):
            history.when(other, by=BEN)


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (send(), "content"),
        (send(attachment_ids=None), "content"),
        (send(ONE, ONE), "attachment_ids"),
        (send(ONE, message_id=None), "message_id"),
    ],
    ids=["neither text nor attachment", "left out", "twice", "no message named"],
)
def test_what_is_no_whole_message_is_refused(command: Command, field: str) -> None:
    with pytest.raises(Invalid) as refusal:
        chat(uploaded(1)).when(command, by=BEN)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    "upload",
    [
        uploaded(2),
        uploaded(1, by=ANNA),
        uploaded(1, chat=OTHER_CHAT),
        uploaded(1, message=message_id(2)),
    ],
    ids=["none", "another's", "of another chat", "of another message"],
)
def test_only_ones_own_of_that_chat_and_message_are_sent(upload: AttachmentUploaded) -> None:
    with pytest.raises(NotFound):
        chat(upload).when(send(ONE), by=BEN)


def test_a_removed_attachment_is_not_sent() -> None:
    history = chat(uploaded(1)).record(AttachmentRemoved(attachment_id=ONE))
    with pytest.raises(NotFound, match="gone"):
        history.when(send(ONE), by=BEN)


# edit-message


def test_the_text_of_a_message_with_attachments_may_be_taken_away() -> None:
    history = chat(uploaded(1)).record(with_images(ONE, content="look"))
    [event] = history.when(EditMessage(message_id=MESSAGE, content=""), by=BEN).events
    assert event == MessageEdited(message_id=MESSAGE, chat_id=CHAT, sender_id=BEN, content="")


def test_that_of_another_may_not() -> None:
    with pytest.raises(Invalid) as refusal:
        chat().record(sent(1)).when(EditMessage(message_id=MESSAGE, content=""), by=BEN)
    assert refusal.value.field == "content"
    with pytest.raises(Forbidden):
        chat().record(sent(1)).when(EditMessage(message_id=MESSAGE, content=""), by=ANNA)


# remove-attachment


def test_what_was_never_sent_is_removed() -> None:
    decision = chat(uploaded(1)).when(RemoveAttachment(attachment_id=ONE), by=None)
    assert decision == Decision([AttachmentRemoved(attachment_id=ONE)])


def test_one_that_its_message_left_out_is_removed() -> None:
    history = chat(uploaded(1), uploaded(2)).record(with_images(ONE))
    assert history.when(RemoveAttachment(attachment_id=TWO), by=None).events


def test_what_was_sent_is_not_removed() -> None:
    history = chat(uploaded(1)).record(with_images(ONE))
    assert history.when(RemoveAttachment(attachment_id=ONE), by=None) == Decision([])


def test_nothing_is_removed_twice() -> None:
    history = chat(uploaded(1)).record(AttachmentRemoved(attachment_id=ONE))
    for number in (1, 9):
        remove = RemoveAttachment(attachment_id=attachment_id(number))
        assert history.when(remove, by=None) == Decision([])


def test_a_removal_and_the_sending_can_not_cross() -> None:
    used = chat(uploaded(1)).used(RemoveAttachment(attachment_id=ONE), by=BEN)
    assert used == {attachment_stream(ONE): 1, message_stream(MESSAGE): 0}
