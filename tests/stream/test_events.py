"""What concerns a user reaches them, live, each once."""

from tests.api.served import Api, Person
from tests.stream.client import connected


async def test_a_message_reaches_all_who_are_in_the_chat(
    whole_api: Api, people: tuple[Person, Person, Person]
) -> None:
    anna, ben, carl = people
    group = await anna.do("create-group", name="Friends", member_ids=[ben.user_id])
    async with (
        connected(whole_api.url, anna.session["access_token"]) as a,
        connected(whole_api.url, ben.session["access_token"]) as b,
        connected(whole_api.url, carl.session["access_token"]) as c,
    ):
        for client in (a, b, c):
            ready = await client.start()
            assert not ready["resumed"]
        sent = await a.do("send-message", chat_id=group["chat_id"], content="Hello")
        event = await b.event("message_sent")
        print(event)
        assert event["position"] == sent["position"]
        assert (await a.event("message_sent")) == event
        await b.say("received", position=event["position"])
        print(await a.event("messages_delivered"))
        print(await b.event("messages_delivered"))
        assert c.events == []
        await b.say("typing", chat_id=group["chat_id"])
        print(await a.wait(lambda frame: frame["op"] == "typing"))
        print([f for f in a.frames if f["op"] not in ("event",)])
