"""What is kept of everybody's presence, against a list that keeps all."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.stream import statuses
from api.stream.statuses import Statuses
from domain.event import Recorded
from domain.user import StatusChanged
from tests.commands.history import user_id

AT = datetime(2026, 1, 2, tzinfo=UTC)


def history(people: list[int]) -> list[Recorded]:
    """Somebody's change at each position from 1 on."""
    return [
        Recorded(position, AT, StatusChanged(user_id=user_id(who), status="away"))
        for position, who in enumerate(people, start=1)
    ]


def last_changes(log: list[Recorded], after: int) -> dict[Any, int]:
    return {
        one.event.user_id: one.position  # type: ignore[union-attr]
        for one in log
        if one.position > after
    }


def told(kept: Statuses, after: int) -> dict[Any, int]:
    return {event.user_id: recorded.position for recorded, event in kept.after(after)}


def follow(kept: Statuses, log: list[Recorded]) -> None:
    for one in log:
        assert isinstance(one.event, StatusChanged)
        kept.changed(one, one.event)


@given(st.lists(st.integers(1, 4), max_size=20), st.data())
def test_from_where_it_began_or_reached_back_to_it_knows_every_last_change(
    people: list[int], data: st.DataObject
) -> None:
    log = history(people)
    began = data.draw(st.integers(0, len(log)))
    kept = Statuses()
    kept.begin(began)
    follow(kept, log[began:])
    for back in data.draw(st.lists(st.integers(0, len(log)), max_size=3)):
        kept.reach_back(back, log[back : kept.since])
        for after in range(kept.since, len(log) + 1):
            assert told(kept, after) == last_changes(log, after)
    assert kept.since <= began


def test_it_forgets_the_oldest_and_says_from_where_on_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statuses, "MAX_STATUSES", 2)
    log = history([1, 2, 1, 3, 4])
    kept = Statuses()
    kept.begin(0)
    follow(kept, log)
    assert kept.since == 3
    assert told(kept, 3) == last_changes(log, 3)
    kept.reach_back(0, log[:3])
    assert kept.since == 3
