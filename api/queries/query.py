"""What all queries share: the frame around them, and parameters that many take."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from api.http import MAX_POSITION, Reply, json_reply, log_position
from api.operations import Call, Operation, Parameter
from api.problems import ReadModelBehind
from api.read_models import Snapshot
from domain.refusals import Invalid, NotFound, Refusal

Time = Annotated[datetime, Meta(tz=True)]

_POSITION = {"type": "integer", "minimum": 0, "maximum": MAX_POSITION}
MIN_POSITION = (
    Parameter(
        "Min-Log-Position",
        "header",
        _POSITION,
        "Answer from read models at this position or later.",
    ),
    Parameter("min_position", "query", _POSITION, "The same as the header Min-Log-Position."),
)


def id_parameter(name: str, description: str) -> Parameter:
    return Parameter(name, "path", {"type": "string", "format": "uuid"}, description)


def whole_parameter(name: str, description: str, *, low: int, high: int) -> Parameter:
    return Parameter(
        name, "query", {"type": "integer", "minimum": low, "maximum": high}, description
    )


class Query(NamedTuple):
    """A GET: `find` looks in a snapshot of the projections `used`."""

    path: str
    name: str
    summary: str
    find: Callable[[Call, Snapshot], Awaitable[msgspec.Struct]]
    used: tuple[str, ...]
    answer: Any
    parameters: tuple[Parameter, ...] = ()
    problems: tuple[type[Refusal], ...] = (NotFound,)


async def answer(query: Query, call: Call) -> Reply:
    async def find(snapshot: Snapshot) -> msgspec.Struct:
        return await query.find(call, snapshot)

    minimum = call.inbound.min_position
    found, position = await call.parts.read_models.read(query.used, minimum, find)
    return json_reply(found, headers=[log_position(position)])


def operation(
    query: Query, answer: Callable[[Query, Call], Awaitable[Reply]] = answer
) -> Operation:
    async def handle(call: Call) -> Reply:
        return await answer(query, call)

    return Operation(
        "GET",
        query.path,
        query.name,
        query.summary,
        handle,
        answer=query.answer,
        states_position=True,
        parameters=(*query.parameters, *MIN_POSITION),
        problems=(Invalid, ReadModelBehind, *query.problems),
    )
