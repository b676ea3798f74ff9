"""What is between the users of a process and others, whoever tells it first."""

from hypothesis import given
from hypothesis import strategies as st

from api.stream.people import People, known_by
from domain.contact import ContactBlocked, Standing
from domain.ids import UserId
from tests.commands.history import ANNA, BEN, CARL, FIRST_TIME

STRANGERS = Standing()
FRIENDS = Standing(requested_by=ANNA, requested_at=FIRST_TIME, accepted_at=FIRST_TIME)
ASKED = Standing(requested_by=ANNA, requested_at=FIRST_TIME)
STANDINGS = (STRANGERS, FRIENDS, ASKED)


def blocked(by: UserId, standing: Standing = FRIENDS) -> Standing:
    return Standing(
        standing.requested_by, standing.requested_at, standing.accepted_at, {by: FIRST_TIME}
    )


def between(one: UserId, other: UserId, standing: Standing) -> ContactBlocked:
    """Which event it is says nothing that its standing does not."""
    return ContactBlocked(user_id=one, contact_id=other, standing=standing)


def people(*taken_in: UserId) -> People:
    known = People()
    for user_id in taken_in:
        known.take_in(user_id)
    return known


@given(st.lists(st.tuples(st.sampled_from(STANDINGS), st.booleans()), min_size=1, max_size=8))
def test_what_the_log_said_last_holds_whatever_is_read_afterwards(
    said: list[tuple[Standing, bool]],
) -> None:
    """Each was so from its place in the log on; some of it is read from a read model, late."""
    known = people(ANNA)
    for position, (standing, is_live) in enumerate(said, 1):
        if is_live:
            known.apply(between(ANNA, BEN, standing), position)
    for position, (standing, is_live) in enumerate(said, 1):
        if not is_live:
            known.load(ANNA, {BEN: known_by(ANNA, standing, position)})
    assert known.may_talk(ANNA, BEN) == (said[-1][0] is FRIENDS)


def test_only_of_those_who_are_here_is_anything_kept() -> None:
    known = people(ANNA)
    known.apply(between(BEN, CARL, FRIENDS), 1)
    assert known.who_watch(CARL) == known.who_watch(BEN) == set()
    known.apply(between(BEN, ANNA, FRIENDS), 2)
    assert known.who_watch(BEN) == {ANNA}
    assert known.who_watch(ANNA) == set()


def test_who_is_blocked_and_nothing_else_is_told_of_nothing() -> None:
    known = people(ANNA)
    known.apply(between(BEN, ANNA, blocked(BEN, STRANGERS)), 1)
    assert known.who_watch(BEN) == known.known_to(ANNA) == set()
    assert not known.may_see(ANNA, BEN)
    known.apply(between(BEN, ANNA, blocked(BEN, ASKED)), 2)
    assert known.who_watch(BEN) == {ANNA}
    known.apply(between(BEN, ANNA, STRANGERS), 3)
    assert known.who_watch(BEN) == set()


def test_who_goes_leaves_nothing_behind() -> None:
    known = people(ANNA, CARL)
    known.apply(between(ANNA, BEN, FRIENDS), 1)
    known.apply(between(CARL, BEN, FRIENDS), 2)
    known.let_go(ANNA)
    assert known.who_watch(BEN) == {CARL}
    assert not known.may_talk(ANNA, BEN)
    known.let_go(CARL)
    known.let_go(CARL)
    assert vars(known) == vars(People())


def test_contacts_talk_until_either_blocks_the_other() -> None:
    known = people(ANNA)
    for position, (standing, may_talk) in enumerate(
        [
            (STRANGERS, False),
            (ASKED, False),
            (FRIENDS, True),
            (blocked(ANNA), False),
            (FRIENDS, True),
            (blocked(BEN), False),
            (blocked(BEN, STRANGERS), False),
            (STRANGERS, False),
        ]
    ):
        known.apply(between(ANNA, BEN, standing), position)
        assert known.may_talk(ANNA, BEN) == may_talk
    assert not known.may_talk(ANNA, CARL)


def test_who_is_blocked_does_not_see_who_blocks_and_is_seen_all_the_same() -> None:
    known = people(ANNA, BEN)
    assert known.may_see(ANNA, BEN)
    known.apply(between(BEN, ANNA, blocked(BEN)), 1)
    assert not known.may_see(ANNA, BEN)
    assert known.may_see(BEN, ANNA)
