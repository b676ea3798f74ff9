"""What a read model is made of: a pure plan from events to set-wise steps.

`plan(events)` gets a batch in log order and answers steps, in the order to be run, in one
transaction together with the checkpoint. A batch costs a handful of statements, never one an
event: a plan folds the batch to final rows, or hands rows to one statement. The result may
not depend on where batches begin and end, nor on anything but the log; tables are named
without a schema, so the same plan builds a copy beside the live tables.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, LiteralString, NamedTuple

from domain.event import Event, Recorded

# A row handed to a statement; datetimes and nested JSON values are fine.
Row = Mapping[str, Any]


class Statement(NamedTuple):
    """SQL with a parameter of JSON rows by name (`json_to_recordset(%(name)s)`), more than
    none in each statement that is worth running."""

    sql: LiteralString
    rows: Mapping[str, Sequence[Row]]


class MonthlyPartitions(NamedTuple):
    """Partitions of `table` for the months (their first days) that rows are about to come."""

    table: str
    months: frozenset[date]


Step = Statement | MonthlyPartitions


class Projection(NamedTuple):
    """A line of the table of projections. `opens` are the handled types whose sealed fields
    the plan reads; of the others it gets the sealed form, which costs nothing.

    Code that makes other rows of the same events is another `version`: it leaves the tables of
    this one alone, and makes its own beside them (infra.replay).
    """

    name: str
    handles: frozenset[type[Event]]
    opens: frozenset[type[Event]]
    plan: Callable[[Sequence[Recorded]], list[Step]]
    version: int = 1


def month_of(time: datetime) -> date:
    return date(time.year, time.month, 1)
