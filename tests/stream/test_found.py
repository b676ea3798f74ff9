"""What the law found, each as the shortest history that shows it."""

from tests.api.conversations import group
from tests.api.served import serving, serving_all
from tests.stream.client import connected


async def test_a_name_that_changed_while_nobody_listened_is_the_new_one(
    database_url: str, nats_url: str
) -> None:
    async with serving_all(database_url, nats_url) as api, serving(database_url, nats_url) as other:
        ann, bob, eve = [await api.person(name) for name in ("ann", "bob", "eve")]
        chat_id = await group(ann, bob)
        names = []
        async with connected(other.url, eve.session["access_token"]) as stranger:
            await stranger.start()
            for name in ("Ann", "Anna"):
                await ann.do("update-profile", display_name=name)
                # It has gone by in this process, where nobody is whom it concerns.
                await stranger.do("update-profile", display_name=name)
                await stranger.event("profile_updated", display_name=name)
                async with connected(other.url, bob.session["access_token"]) as client:
                    await client.start()
                    await ann.do("send-message", chat_id=chat_id, content=name)
                    sent = await client.event("message_sent", content=name)
                names.append(sent["data"]["sender"]["display_name"])
    assert names == ["Ann", "Anna"]
