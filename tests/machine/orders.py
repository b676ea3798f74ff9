"""Commands sent at once: is there an order of single commands that explains every answer?

Positions order those that appended; a command that changed nothing states the head that it
saw; refusals fit in wherever the model refuses alike. What follows from a deleted account are
steps of their own, somewhere after it: the log says where.
"""

from collections.abc import Mapping
from copy import deepcopy

from tests.machine.model import Messenger, Outcome
from tests.machine.served import Heard, Sent

Exchange = tuple[Sent, Heard]
# Of whom, and what: a method of the model.
Settling = tuple[str, str]
SETTLINGS = ("settle_groups", "settle_contacts")


class Unexplained(AssertionError):
    """No order of single commands gives these answers"""


def step(model: Messenger, sent: Sent, heard: Heard) -> Outcome:
    """What the model answers; it takes over the ids that the server chose."""
    chosen = {**heard.body, "position": heard.position} if heard.status == 200 else {}
    return model.execute(sent.actor, sent.name, sent.data, sent.key, chosen)


def difference(outcome: Outcome, heard: Heard, head: int) -> str | None:
    """What is wrong with an answer to a command that was carried out at `head`."""
    if (outcome.status, outcome.code) != (heard.status, heard.code):
        return f"the model says {outcome.status} {outcome.code or ''}"
    if heard.position is None:
        return None
    answered = {name: value for name, value in heard.body.items() if name != "created_at"}
    if answered != outcome.answer:
        return f"the model answers {outcome.answer}"
    if outcome.is_replayed != heard.is_replayed:
        return f"the model says replayed: {outcome.is_replayed}"
    return _misplaced(outcome, heard.position, head)


def _misplaced(outcome: Outcome, position: int, head: int) -> str | None:
    if outcome.position is not None:
        wrong = position != outcome.position
        return f"the first answer had position {outcome.position}" if wrong else None
    if outcome.is_changed and position <= head:
        return f"something is changed, but the log ended at {head} already"
    if not outcome.is_changed and position < head:
        return f"nothing is changed, but the log ended at {head} already"
    return None


def settlings(sent: Sent, outcome: Outcome) -> tuple[Settling, ...]:
    if sent.name != "delete-account" or sent.actor is None or not outcome.is_changed:
        return ()
    return tuple((sent.actor, name) for name in SETTLINGS)


def settle(model: Messenger, steps: tuple[Settling, ...]) -> None:
    for actor, name in steps:
        getattr(model, name)(actor)


def explain(
    model: Messenger, exchanges: list[Exchange], head: int, settled: Mapping[str, int]
) -> tuple[Messenger, list[int]]:
    """The model after some order that explains the answers, and that order.

    `settled`: at which position the log has what followed from whose deletion.
    """
    found = _explain(model, dict(enumerate(exchanges)), (), head, settled)
    if found is None:
        raise Unexplained
    return found


def _explain(
    model: Messenger,
    left: dict[int, Exchange],
    due: tuple[Settling, ...],
    head: int,
    settled: Mapping[str, int],
) -> tuple[Messenger, list[int]] | None:
    if not left:
        settle(model, due)
        return model, []
    for number in sorted(left, key=lambda one: left[one][1].position or 0):
        if _is_after(left[number], due, settled):
            continue
        found = _explain_from(number, model, left, due, head, settled)
        if found is not None:
            return found[0], [number, *found[1]]
    if not due:
        return None
    after = deepcopy(model)
    settle(after, due[:1])
    return _explain(after, left, due[1:], head, settled)


def _is_after(exchange: Exchange, due: tuple[Settling, ...], settled: Mapping[str, int]) -> bool:
    """Whether what is due came before it; a deletion's own position says nothing of that."""
    sent, heard = exchange
    if heard.position is None or sent.name == "delete-account":
        return False
    return any(settled.get(actor, heard.position) < heard.position for actor, _ in due)


def _explain_from(
    number: int,
    model: Messenger,
    left: dict[int, Exchange],
    due: tuple[Settling, ...],
    head: int,
    settled: Mapping[str, int],
) -> tuple[Messenger, list[int]] | None:
    """With this one next."""
    sent, heard = left[number]
    after = deepcopy(model)
    outcome = step(after, sent, heard)
    if difference(outcome, heard, head):
        return None
    rest = {other: exchange for other, exchange in left.items() if other != number}
    steps = settlings(sent, outcome)
    # The position of a deletion is that of the last of what follows from it.
    is_placed = heard.position is not None and outcome.position is None and not steps
    now = (heard.position or head) if is_placed else head
    return _explain(after, rest, due + steps, now, settled)
