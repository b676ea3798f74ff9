"""Formatting of a message's text: half-open character ranges by style (data-model.md,
"Metadata Format")."""

from typing import Annotated

import msgspec
from msgspec import Meta

from domain.message import Formatting
from domain.refusals import Invalid

MAX_RANGES_PER_STYLE = 1_000

Range = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=2, max_length=2)]
Ranges = Annotated[list[Range], Meta(max_length=MAX_RANGES_PER_STYLE)]


class Styles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Half-open character ranges [start, end) by style."""

    bold: Ranges = []
    italic: Ranges = []
    underline: Ranges = []
    strikethrough: Ranges = []
    code: Ranges = []


class Metadata(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    formatting: Styles | None = None


def formatting_of(metadata: Metadata | None, content: str) -> Formatting:
    """The styles that are used. Raises Invalid for ranges that are not inside the content."""
    if metadata is None or metadata.formatting is None:
        return {}
    styles = msgspec.structs.asdict(metadata.formatting)
    for style, ranges in styles.items():
        for start, end in ranges:
            if not start < end <= len(content):
                raise Invalid(
                    f"range [{start}, {end}] is empty or beyond the {len(content)} characters",
                    field=f"metadata.formatting.{style}",
                )
    return {
        style: [(start, end) for start, end in ranges] for style, ranges in styles.items() if ranges
    }
