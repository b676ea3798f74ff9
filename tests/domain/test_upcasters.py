"""What older versions of events mean today; that the golden files of them decode is the codec's."""

from domain import EVENTS
from domain.upcasters import UPCASTERS


def test_a_message_from_before_attachments_has_none() -> None:
    before = {"message_id": "m", "content": "sealed"}
    assert UPCASTERS["message_sent", 1](before) == before | {"attachment_ids": []}
    assert "attachment_ids" not in before


def test_each_step_ends_at_a_version_that_is_known() -> None:
    today = {(event.type, event.version) for event in EVENTS}
    assert all((name, version + 1) in today | set(UPCASTERS) for name, version in UPCASTERS)
