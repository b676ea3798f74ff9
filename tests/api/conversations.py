"""What tests let people do first: groups, contacts, direct chats, messages."""

from typing import Any

from tests.api.served import Json, Person


async def group(owner: Person, *members: Person, **fields: Any) -> str:
    ids = [member.user_id for member in members]
    created = await owner.do("create-group", name="Friends", member_ids=ids, **fields)
    chat_id: str = created["chat_id"]
    return chat_id


async def befriend(one: Person, other: Person) -> int:
    """The position from which on they are contacts."""
    await one.do("request-contact", user_id=other.user_id)
    accepted = await other.do("accept-contact", user_id=one.user_id)
    position: int = accepted["position"]
    return position


async def direct(one: Person, other: Person) -> str:
    """A chat of two, who are contacts from now on."""
    await befriend(one, other)
    chat_id: str = (await one.do("open-direct-chat", user_id=other.user_id))["chat_id"]
    return chat_id


async def say(sender: Person, chat_id: str, *contents: str) -> list[Json]:
    return [
        await sender.do("send-message", chat_id=chat_id, content=content) for content in contents
    ]
