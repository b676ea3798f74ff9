"""data-model.md, entity 6, and contract.md, section 3: images of messages, and avatars.

The addresses are read as a browser would: by HTTP alone, from the object store itself.
"""

import io
import time
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from PIL import Image

from tests.acceptance.client import TIMEOUT_SECONDS, Json, Messenger, Person, new_id, picture

GONE_SECONDS = 60.0
POLL_SECONDS = 0.1
LARGE = picture("PNG", (1_200, 900))
KINDS = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp"}
FIELDS = {
    "attachment_id",
    "file_name",
    "file_type",
    "file_size",
    "width",
    "height",
    "url",
    "medium_url",
    "thumbnail_url",
    "expires_at",
}

ROWS = """
    SELECT *
    FROM attachments
    WHERE message_id = %(message_id)s
    ORDER BY ordinal
"""


def fetched(url: str, method: str = "GET") -> httpx.Response:
    return httpx.request(method, url, timeout=TIMEOUT_SECONDS)


def got(url: str) -> tuple[str, Image.Image]:
    response = fetched(url)
    assert response.status_code == 200, response.text
    return response.headers["content-type"], Image.open(io.BytesIO(response.content))


def until_gone(*urls: str) -> None:
    deadline = time.monotonic() + GONE_SECONDS
    for url in urls:
        while (status := status_of(url)) == 200:
            assert time.monotonic() < deadline, f"still there: {url}"
            time.sleep(POLL_SECONDS)
        assert status == 404, "the signature still holds, the object is gone"


def status_of(url: str) -> int:
    """Without the body: that of an object that goes meanwhile breaks off."""
    with httpx.stream("GET", url, timeout=TIMEOUT_SECONDS) as response:
        return response.status_code


def addresses(attachment: Json) -> list[str]:
    return [attachment["url"], attachment["medium_url"], attachment["thumbnail_url"]]


def without_addresses(attachment: Json) -> Json:
    return {name: value for name, value in attachment.items() if not name.endswith(("url", "_at"))}


@pytest.fixture
def friends(messenger: Messenger) -> tuple[Person, Person, str]:
    ann, ben = messenger.people("ann", "ben")
    return ann, ben, ann.group(ben)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_uploaded_sent_and_seen(friends: tuple[Person, Person, str], kind: str) -> None:
    ann, ben, chat = friends
    message_id = new_id()
    uploaded = ann.upload(chat, message_id, picture(kind, (1_200, 900)), name="../x/cat.bmp")
    assert set(uploaded) == FIELDS
    assert uploaded["file_name"] == "cat.bmp"
    assert (uploaded["file_type"], uploaded["width"], uploaded["height"]) == (
        KINDS[kind], 1_200, 900,
    )  # fmt: skip
    ann.do(
        "send-message",
        chat_id=chat, content="", message_id=message_id,
        attachment_ids=[uploaded["attachment_id"]],
    )  # fmt: skip
    seen = ben.message(message_id)
    assert seen["content_type"] == "image"
    [attachment] = seen["attachments"]
    assert without_addresses(attachment) == without_addresses(uploaded)
    sizes = [(1_200, 900), (800, 600), (300, 300)]
    for url, size in zip(addresses(attachment), sizes, strict=True):
        content_type, image = got(url)
        assert (content_type, image.format, image.size) == (KINDS[kind], kind, size)
    assert len(fetched(attachment["url"]).content) == attachment["file_size"]


def test_the_images_are_shown_wherever_the_message_is(
    friends: tuple[Person, Person, str],
) -> None:
    ann, ben, chat = friends
    message_id = ann.show(chat, picture(), picture("GIF"), content="look")
    everywhere = [
        ben.message(message_id),
        ben.messages(chat)[-1],
        ben.see(f"/v1/chats/{chat}")["last_message"],
        next(one for one in ben.see("/v1/state")["chats"] if one["id"] == chat)["last_message"],
    ]
    for message in everywhere:
        assert message["content"] == "look"
        assert [one["file_type"] for one in message["attachments"]] == ["image/png", "image/gif"]
        assert all(got(url) for one in message["attachments"] for url in addresses(one))


def test_storage_keys_name_chat_message_and_size(
    messenger: Messenger, friends: tuple[Person, Person, str]
) -> None:
    ann, _, chat = friends
    message_id = ann.show(chat, picture("JPEG"))
    row = messenger.row(ROWS, message_id=message_id)
    keys = [f"{chat}/{message_id}/{row['id']}_{size}.jpg" for size in ("original", "thumbnail")]
    assert [row["storage_key"], row["thumbnail_key"]] == keys
    store = f"{messenger.run['s3_endpoint']}/messenger"
    assert [row["url"], row["thumbnail_url"]] == [f"{store}/{key}" for key in keys]
    assert fetched(row["url"]).status_code in (400, 403), "the plain address opens nothing"


def test_addresses_are_signed_for_an_hour_at_each_read(
    friends: tuple[Person, Person, str],
) -> None:
    ann, ben, chat = friends
    message_id = new_id()
    uploaded = ann.upload(chat, message_id, picture())
    path = f"/v1/attachments/{uploaded['attachment_id']}"
    time.sleep(1.1)  # the store counts in seconds
    fresh = ann.see(path)
    assert fresh["url"] != uploaded["url"]
    assert fresh["expires_at"] > uploaded["expires_at"]
    assert parse_qs(urlsplit(fresh["url"]).query)["X-Amz-Expires"] == ["3600"]
    assert ben.look(path).said == "404 not-found", "what is not sent yet is its sender's alone"
    ids = [uploaded["attachment_id"]]
    ann.say(chat, "", message_id=message_id, attachment_ids=ids)
    assert all(got(url) for url in addresses(ben.see(path)))


def test_an_altered_address_is_refused_by_the_store(friends: tuple[Person, Person, str]) -> None:
    ann, _, chat = friends
    one = ann.upload(chat, new_id(), picture())["url"]
    other = ann.upload(chat, new_id(), picture())["url"]
    last = "0" if one[-1] != "0" else "1"
    for altered in (
        one[:-1] + last,
        one.replace("X-Amz-Expires=3600", "X-Amz-Expires=86400"),
        one.replace("_original.", "_thumbnail."),
        urlsplit(other)._replace(query=urlsplit(one).query).geturl(),
        urlsplit(one)._replace(query="").geturl(),
    ):
        assert fetched(altered).status_code in (400, 403), altered
    assert fetched(one).status_code == 200
    for method in ("PUT", "DELETE"):
        assert fetched(one, method).status_code in (400, 403), method


def test_nobody_outside_the_chat_gets_an_address(
    messenger: Messenger, friends: tuple[Person, Person, str]
) -> None:
    ann, ben, chat = friends
    eve = messenger.person("eve")
    message_id = ann.show(chat, picture())
    [attachment] = ben.message(message_id)["attachments"]
    path = f"/v1/attachments/{attachment['attachment_id']}"
    assert ben.look(path).said == "200"
    assert eve.look(path).said == "404 not-found"
    assert eve.ask_upload(chat, new_id(), picture()).said == "404 not-found"
    ann.do("remove-member", chat_id=chat, user_id=ben.id)
    assert ben.look(path).said == "404 not-found"


def test_a_message_has_at_most_5_attachments(friends: tuple[Person, Person, str]) -> None:
    ann, _, chat = friends
    message_id = ann.show(chat, *(picture(size=(n, n)) for n in range(1, 6)))
    shown = ann.message(message_id)["attachments"]
    assert [one["width"] for one in shown] == [1, 2, 3, 4, 5]
    six = [new_id() for _ in range(6)]
    fields = {"chat_id": chat, "message_id": new_id(), "content": ""}
    assert ann.refused("send-message", **fields, attachment_ids=six) == "400 invalid"


def test_only_ones_own_unused_uploads_of_that_chat_and_message_are_sent(
    friends: tuple[Person, Person, str],
) -> None:
    ann, ben, chat = friends
    other = ann.group(ben)
    message_id, used = new_id(), new_id()
    mine = ann.upload(chat, message_id, picture())["attachment_id"]
    wrong = [
        ben.upload(chat, message_id, picture())["attachment_id"],
        ann.upload(other, message_id, picture())["attachment_id"],
        ann.upload(chat, new_id(), picture())["attachment_id"],
        new_id(),
    ]
    fields = {"chat_id": chat, "message_id": message_id, "content": ""}
    for one in wrong:
        assert ann.refused("send-message", **fields, attachment_ids=[mine, one]) == "404 not-found"
    assert ann.refused("send-message", **fields, attachment_ids=[mine, mine]) == "400 invalid"
    nameless = {"chat_id": chat, "content": "", "attachment_ids": [mine]}
    assert ann.refused("send-message", **nameless) == "400 invalid"
    assert ann.refused("send-message", **fields) == "400 invalid"
    first = ann.do("send-message", **fields, attachment_ids=[mine])
    assert ann.do("send-message", **fields, attachment_ids=[mine]) == first, "sent again"
    again = {"chat_id": chat, "message_id": used, "content": "", "attachment_ids": [mine]}
    assert ann.refused("send-message", **again) == "404 not-found"
    assert ann.ask_upload(chat, message_id, picture()).said == "409 conflict"


def test_an_edit_changes_the_text_and_leaves_the_images(
    friends: tuple[Person, Person, str],
) -> None:
    ann, ben, chat = friends
    message_id = ann.show(chat, picture(), content="look")
    before = ben.message(message_id)
    ann.do("edit-message", message_id=message_id, content="")
    after = ben.message(message_id)
    assert (after["content"], after["is_edited"]) == ("", True)
    assert after["metadata"] == before["metadata"]
    assert [without_addresses(one) for one in after["attachments"]] == [
        without_addresses(one) for one in before["attachments"]
    ]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"", "415 unsupported-media"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "415 unsupported-media"),
        (picture("BMP"), "415 unsupported-media"),
        (LARGE[: len(LARGE) // 2], "400 invalid"),
        (bytes(10 * 1024 * 1024 + 1), "413 too-large"),
        (picture("PNG", (8_000, 5_001)), "413 too-large"),
    ],
    ids=["empty", "SVG", "BMP", "truncated", "over 10 MB", "over 40 megapixels"],
)
def test_what_is_no_such_image_is_refused_and_nothing_is_kept(
    messenger: Messenger, friends: tuple[Person, Person, str], image: bytes, said: str
) -> None:
    ann, _, chat = friends
    message_id = new_id()
    assert ann.ask_upload(chat, message_id, image).said == said
    assert ann.set_avatar(image).said == said
    assert messenger.rows(ROWS, message_id=message_id) == []


def test_deleting_a_message_removes_its_objects(friends: tuple[Person, Person, str]) -> None:
    ann, ben, chat = friends
    message_id = ann.show(chat, picture(), picture("GIF"))
    kept = ann.message(ann.show(chat, picture()))["attachments"]
    gone = ann.message(message_id)["attachments"]
    ann.do("delete-message", message_id=message_id)
    assert ben.message(message_id)["attachments"] == []
    assert ben.look(f"/v1/attachments/{gone[0]['attachment_id']}").said == "404 not-found"
    until_gone(*(url for one in gone for url in addresses(one)))
    assert all(got(url) for one in kept for url in addresses(one))


@pytest.mark.parametrize("erases", [True, False])
def test_an_erased_accounts_images_go_and_a_deleted_ones_stay(
    messenger: Messenger, friends: tuple[Person, Person, str], erases: bool
) -> None:
    ann, ben, chat = friends
    message_id = ann.show(chat, picture())
    avatar = ann.set_avatar(picture()).good()["avatar_url"]
    [attachment] = ben.message(message_id)["attachments"]
    ann.delete_account(erase_messages=erases)
    until_gone(avatar)
    shown = ben.message(message_id)
    if erases:
        assert (shown["content"], shown["attachments"]) == ("[Deleted]", [])
        until_gone(*addresses(attachment))
    else:
        assert [got(url) for one in shown["attachments"] for url in addresses(one)]


def test_an_avatar_is_a_square_that_replaces_the_one_before(
    messenger: Messenger, friends: tuple[Person, Person, str]
) -> None:
    ann, ben, chat = friends
    first = ann.set_avatar(LARGE).good()["avatar_url"]
    assert got(first)[1].size == (300, 300)
    second = ann.set_avatar(picture("WEBP", (400, 400))).good()["avatar_url"]
    until_gone(first)
    seen = [
        ann.see("/v1/users/me"),
        ben.see(f"/v1/users/{ann.id}"),
        *(one["user"] for one in ben.items(f"/v1/chats/{chat}/participants")),
    ]
    for url in (one["avatar_url"] for one in seen if one["id"] == ann.id):
        assert urlsplit(url).path == urlsplit(second).path
        assert got(url)[0] == "image/webp"
    # Sent back as it was shown, it is still the same.
    ann.do("update-profile", avatar_url=seen[0]["avatar_url"])
    ann.do("update-profile", display_name="Ann")
    assert got(ann.see("/v1/users/me")["avatar_url"])
    ann.do("update-profile", avatar_url=None)
    assert ann.see("/v1/users/me")["avatar_url"] is None
    until_gone(second)


def test_a_groups_avatar_is_set_by_its_owner_or_an_admin(
    friends: tuple[Person, Person, str],
) -> None:
    ann, ben, chat = friends
    assert ben.set_avatar(picture(), of=f"chats/{chat}").said == "403 forbidden"
    first = ann.set_avatar(picture(), of=f"chats/{chat}").good()["avatar_url"]
    ann.do("change-role", chat_id=chat, user_id=ben.id, role="admin")
    second = ben.set_avatar(picture("GIF"), of=f"chats/{chat}").good()["avatar_url"]
    until_gone(first)
    shown = ann.see(f"/v1/chats/{chat}")["avatar_url"]
    assert urlsplit(shown).path == urlsplit(second).path
    ann.do("delete-group", chat_id=chat)
    until_gone(shown)
