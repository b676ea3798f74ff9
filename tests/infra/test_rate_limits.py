"""Token buckets against a plain one in exact fractions, with clocks that the tests set."""

from fractions import Fraction
from itertools import accumulate

from hypothesis import assume, given
from hypothesis import strategies as st

from infra.rate_limits import NANOSECONDS, Buckets, Limit, Verdict

DAY_NS = 86_400 * NANOSECONDS

LIMITS = st.builds(Limit, st.just("test"), st.floats(0.001, 2_000), st.integers(1, 50))
PAUSES_NS = st.one_of(st.just(0), st.integers(0, NANOSECONDS), st.integers(0, DAY_NS))
# When, after the one before, and how much is asked for.
ASKED = st.lists(st.tuples(PAUSES_NS, st.integers(1, 60)), min_size=1, max_size=60)


def one_a_second(burst: int = 5, **more: int) -> Buckets:
    return Buckets(Limit("test", 1, burst), **more)


def run(buckets: Buckets, asked: list[tuple[int, int]]) -> list[tuple[int, int, Verdict]]:
    """Time, cost and verdict of each."""
    times = accumulate(pause_ns for pause_ns, _ in asked)
    return [
        (now_ns, cost, buckets.take("key", cost, now_ns))
        for now_ns, (_, cost) in zip(times, asked, strict=True)
    ]


@given(limit=LIMITS, asked=ASKED)
def test_what_a_bucket_would_say_is_what_it_then_says(
    limit: Limit, asked: list[tuple[int, int]]
) -> None:
    buckets, now_ns = Buckets(limit), 0
    for pause_ns, cost in asked:
        now_ns += pause_ns
        expected_ns = buckets.wait_ns("key", cost, now_ns)
        assert buckets.take("key", cost, now_ns).wait_ns == expected_ns


@given(limit=LIMITS, asked=ASKED)
def test_within_any_time_no_more_is_given_than_burst_and_rate_allow(
    limit: Limit, asked: list[tuple[int, int]]
) -> None:
    given_at = [(at, cost) for at, cost, said in run(Buckets(limit), asked) if not said.wait_ns]
    for first, (began_ns, _) in enumerate(given_at):
        total = 0
        for now_ns, cost in given_at[first:]:
            total += cost
            seconds = Fraction(now_ns - began_ns, NANOSECONDS)
            assert total <= limit.burst + Fraction(limit.per_second) * seconds


@given(limit=LIMITS, asked=ASKED)
def test_it_says_what_a_plain_bucket_says(limit: Limit, asked: list[tuple[int, int]]) -> None:
    level, filled_at_ns = Fraction(limit.burst), 0
    for now_ns, cost, said in run(Buckets(limit), asked):
        level = min(
            Fraction(limit.burst), level + Fraction(now_ns - filled_at_ns, limit.interval_ns)
        )
        filled_at_ns = now_ns
        assert bool(said.wait_ns) is (level < cost)
        if said.wait_ns:
            assert said.wait_ns == (cost - level) * limit.interval_ns
        else:
            level -= cost
        assert said.remaining == level // 1
        assert said.reset_ns == (limit.burst - level) * limit.interval_ns


@given(limit=LIMITS, asked=ASKED, cost=st.integers(1, 50))
def test_waiting_as_long_as_it_says_is_enough_and_less_is_not(
    limit: Limit, asked: list[tuple[int, int]], cost: int
) -> None:
    assume(cost <= limit.burst)
    buckets = Buckets(limit)
    run(buckets, asked)
    now_ns = sum(pause_ns for pause_ns, _ in asked)
    wait_ns = buckets.take("key", cost, now_ns).wait_ns
    if wait_ns:
        assert buckets.take("key", cost, now_ns + wait_ns - 1).wait_ns == 1
        assert buckets.take("key", cost, now_ns + wait_ns).wait_ns == 0


def test_what_is_refused_costs_nothing() -> None:
    buckets = one_a_second()
    assert buckets.take("key", 3, 0).remaining == 2
    for _ in range(10):
        assert buckets.take("key", 3, 0).wait_ns == NANOSECONDS
    assert buckets.take("key", 2, 0).remaining == 0


def test_keys_have_nothing_to_do_with_each_other() -> None:
    buckets = one_a_second(burst=1)
    assert not buckets.take("one", 1, 0).wait_ns
    assert buckets.take("one", 1, 0).wait_ns
    assert not buckets.take("other", 1, 0).wait_ns


@given(st.lists(st.tuples(PAUSES_NS, st.integers(0, 200)), max_size=300))
def test_keys_are_bounded_whatever_comes(asked: list[tuple[int, int]]) -> None:
    buckets = one_a_second(max_keys=10)
    now_ns = 0
    for pause_ns, key in asked:
        now_ns += pause_ns
        buckets.take(str(key), 1, now_ns)
        assert len(buckets) <= 10


def test_the_key_longest_unused_makes_room() -> None:
    buckets = one_a_second(burst=1, max_keys=2)
    for key in ("one", "other", "one", "third"):
        buckets.take(key, 1, 0)
    assert buckets.take("one", 1, 0).wait_ns
    assert not buckets.take("other", 1, 0).wait_ns


def test_after_a_flood_the_table_shrinks_again() -> None:
    buckets = one_a_second(burst=1, max_keys=1_000)
    for n in range(1_000):
        buckets.take(f"flood {n}", 1, 0)
    assert len(buckets) == 1_000
    for n in range(1_000):
        buckets.take(f"later {n}", 1, (n + 1) * NANOSECONDS)
    assert len(buckets) <= 2


def test_a_full_bucket_is_forgotten_without_loss() -> None:
    buckets = one_a_second(burst=2)
    buckets.take("old", 2, 0)
    buckets.take("new", 1, 2 * NANOSECONDS)
    assert len(buckets) == 1
    assert buckets.take("old", 1, 2 * NANOSECONDS).remaining == 1
