"""What the machine found, each as the shortest history that shows it."""

from tests.api.served import good, problem, serving


async def test_the_key_of_a_create_sent_again_is_remembered(
    database_url: str, nats_url: str
) -> None:
    async with serving(database_url, nats_url, rate_limits=False) as api:
        ann, bob = await api.person("ann"), await api.person("bob")
        group = {"name": "one", "member_ids": [bob.user_id]}
        chat_id = (await ann.do("create-group", **group))["chat_id"]
        first = await ann.send("create-group", "key", chat_id=chat_id, **group)
        again = await ann.send("create-group", "key", chat_id=chat_id, **group)
        other = await ann.send("set-status", "key", status="away")
    assert good(first) == good(again)
    assert again.headers["Idempotency-Replayed"] == "true"
    problem(other, 422, "idempotency-key-reused")
