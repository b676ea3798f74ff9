"""Which addresses are objects of ours: whose, and none that was only made to look so."""

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from domain.attachment import EXTENSIONS, FileType
from domain.avatar import avatar_key, avatar_prefix, new_avatar_key
from domain.ids import UserId
from tests.commands.history import ANNA, BEN, uuid

AVATAR = uuid(5, 1)
KEY = f"avatars/{ANNA}/{AVATAR}_thumbnail.png"


@hypothesis_given(
    st.sampled_from([ANNA, BEN]), st.uuids().map(str), st.sampled_from(sorted(EXTENSIONS))
)
def test_the_key_is_found_in_any_stores_address(
    owner: UserId, avatar_id: str, file_type: FileType
) -> None:
    key = new_avatar_key(owner, avatar_id, file_type)
    assert key.startswith(avatar_prefix(owner))
    for store in ("https://s3.example.org/bucket", "http://127.0.0.1:9000/x/y"):
        assert avatar_key(f"{store}/{key}", owner) == key
        assert avatar_key(f"{store}/{key}?X-Amz-Expires=3600&X-Amz-Signature=0", owner) == key


@pytest.mark.parametrize(
    "address",
    [
        None,
        "https://example.org/anna.png",
        "https://example.org/avatars/anna.png",
        f"https://example.org/{KEY}?x\n",
        f"https://example.org/{KEY}\n",
        f"https://example.org/{KEY}/more",
        f"https://example.org/{KEY.replace('thumbnail', 'original')}",
        f"https://example.org/{KEY.replace('.png', '.svg')}",
        f"https://example.org/{KEY.replace(ANNA, BEN)}",
        f"https://example.org/avatars/{ANNA}/../{BEN}/{AVATAR}_thumbnail.png",
        KEY,
    ],
)
def test_an_address_elsewhere_or_of_another_has_none(address: str | None) -> None:
    assert avatar_key(address, ANNA) is None
