"""Batches end after whole ticks, wherever their reader happened to stop."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from domain.event import Recorded
from infra.ticks import TICK_SECONDS, whole_ticks

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
gaps = st.lists(st.sampled_from([0, 1, 5, 20, 60]), min_size=1, max_size=40)


def log(gaps: list[int]) -> list[Recorded]:
    """So many milliseconds between them."""
    at, events = BEGIN, []
    for position, gap in enumerate(gaps, 1):
        at += timedelta(milliseconds=gap)
        events.append(Recorded(position, at, None))
    return events


def ticks_of(events: list[Recorded]) -> set[int]:
    return {int(event.recorded_at.timestamp() // TICK_SECONDS) for event in events}


@given(gaps, st.data())
def test_a_batch_is_a_beginning_that_cuts_no_tick_unless_it_is_all_there_is(
    gaps: list[int], data: st.DataObject
) -> None:
    events = log(gaps)
    seen = events[: data.draw(st.integers(1, len(events)))]
    batch = whole_ticks(seen)
    assert batch
    assert batch == events[: len(batch)]
    if batch == seen:
        assert len(ticks_of(seen)) == 1
    else:
        assert not ticks_of(batch) & ticks_of(events[len(batch) :])


def test_of_nothing_there_is_nothing() -> None:
    assert whole_ticks([]) == []
