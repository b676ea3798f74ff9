"""register-user, update-profile, change-password (data-model.md, entity 1)."""

from typing import Any

import pytest

from commands.change_password import ChangePassword
from commands.command import Answer, Claim, Decision
from commands.register_user import Registered, RegisterUser
from commands.update_profile import UpdateProfile
from domain.ids import user_stream
from domain.refusals import Conflict, Invalid, NotFound, WrongPassword
from domain.user import PasswordChanged, ProfileUpdated, UserRegistered
from tests.commands.history import ANNA, BEN, PASSWORD, given, hashed, new_id, registered, user_id

LONGEST = "é" * 36


def register(password: str = PASSWORD, **fields: Any) -> RegisterUser:
    return RegisterUser(**{"username": "anna", "user_id": ANNA} | fields, password=password)


def test_registering_makes_a_user_and_claims_the_username() -> None:
    decision = given().when(register(display_name="Anna"), by=None)
    assert decision == Decision(
        [
            UserRegistered(
                user_id=ANNA, username="anna", display_name="Anna", password_hash=hashed(PASSWORD)
            )
        ],
        Registered(user_id=ANNA),
        claims=(Claim("username", "anna", user_stream(ANNA)),),
    )


def test_an_id_is_made_for_who_brings_none() -> None:
    decision = given().when(RegisterUser(username="anna", password=PASSWORD), by=None)
    assert decision.answer == Registered(user_id=new_id(0))  # type: ignore[arg-type]


def test_the_display_name_defaults_to_the_username() -> None:
    [event] = given().when(register(), by=None).events
    assert isinstance(event, UserRegistered)
    assert event.display_name == "anna"


def test_usernames_are_claimed_as_they_are_written() -> None:
    [upper] = given().when(register(username="Anna"), by=None).claims
    [lower] = given().when(register(username="anna"), by=None).claims
    assert upper.value != lower.value


@pytest.mark.parametrize("password", ["1234567", "é" * 3, "é" * 37, "x" * 73])
def test_a_password_has_8_to_72_bytes(password: str) -> None:
    with pytest.raises(Invalid) as refusal:
        given().when(register(password), by=None)
    assert refusal.value.field == "password"


@pytest.mark.parametrize("password", ["12345678", "é" * 4, LONGEST, "x" * 72])
def test_a_password_of_8_to_72_bytes_is_taken(password: str) -> None:
    assert given().when(register(password), by=None).events


def test_registering_again_with_the_same_content_answers_as_at_first() -> None:
    decision = given(registered(ANNA, "anna")).when(register(), by=None)
    assert decision == Decision([], Registered(user_id=ANNA), repeats=1)


def test_registering_again_is_compared_with_the_registration_not_with_today() -> None:
    history = given(
        registered(ANNA, "anna"),
        ProfileUpdated(user_id=ANNA, display_name="Annie", avatar_url=None),
        PasswordChanged(user_id=ANNA, password_hash=hashed("another one")),
    )
    again = Decision([], Registered(user_id=ANNA), repeats=1)
    assert history.when(register(), by=None) == again


@pytest.mark.parametrize(
    "other",
    [
        register(username="anne"),
        register(display_name="Anne"),
        register("another one"),
    ],
)
def test_an_id_is_not_registered_twice_with_other_content(other: RegisterUser) -> None:
    with pytest.raises(Conflict):
        given(registered(ANNA, "anna")).when(other, by=None)


def test_the_id_of_an_erased_user_stays_taken() -> None:
    erased = UserRegistered(user_id=ANNA, username=None, display_name=None, password_hash=None)
    with pytest.raises(Conflict):
        given(erased).when(register(), by=None)


def test_a_user_whose_hash_alone_is_gone_is_not_registered_again() -> None:
    erased = UserRegistered(user_id=ANNA, username="anna", display_name="anna", password_hash=None)
    with pytest.raises(Conflict):
        given(erased).when(register(), by=None)


def test_a_profile_takes_what_is_given_and_keeps_the_rest() -> None:
    history = given(registered(ANNA, "anna"))
    [named] = history.when(UpdateProfile(display_name="Annie"), by=ANNA).events
    assert named == ProfileUpdated(user_id=ANNA, display_name="Annie", avatar_url=None)
    url = "https://example.org/anna.png"
    [pictured] = history.record(named).when(UpdateProfile(avatar_url=url), by=ANNA).events
    assert pictured == ProfileUpdated(user_id=ANNA, display_name="Annie", avatar_url=url)


def test_null_clears_a_profile() -> None:
    filled = ProfileUpdated(user_id=ANNA, display_name="Annie", avatar_url="http://a.example")
    [cleared] = (
        given(registered(ANNA, "anna"), filled)
        .when(UpdateProfile(display_name=None, avatar_url=None), by=ANNA)
        .events
    )
    assert cleared == ProfileUpdated(user_id=ANNA, display_name="anna", avatar_url=None)


@pytest.mark.parametrize(
    "update",
    [
        UpdateProfile(),
        UpdateProfile(display_name="anna"),
        UpdateProfile(display_name=None),
        UpdateProfile(avatar_url=None),
    ],
)
def test_a_profile_that_stays_as_it_is_is_no_event(update: UpdateProfile) -> None:
    assert given(registered(ANNA, "anna")).when(update, by=ANNA) == Decision([], Answer())


def test_who_is_not_registered_has_no_profile() -> None:
    with pytest.raises(NotFound):
        given(registered(ANNA)).when(UpdateProfile(display_name="Ben"), by=BEN)


def change(current: str = PASSWORD, new: str = "battery staple") -> ChangePassword:
    return ChangePassword(current_password=current, new_password=new)


def test_a_password_is_changed_by_who_knows_it() -> None:
    [event] = given(registered(ANNA)).when(change(), by=ANNA).events
    assert event == PasswordChanged(user_id=ANNA, password_hash=hashed("battery staple"))


def test_after_a_change_the_old_password_is_wrong() -> None:
    changed = PasswordChanged(user_id=ANNA, password_hash=hashed("battery staple"))
    history = given(registered(ANNA), changed)
    with pytest.raises(WrongPassword):
        history.when(change(), by=ANNA)
    assert history.when(change("battery staple", "another one"), by=ANNA).events


def test_a_wrong_password_changes_nothing() -> None:
    with pytest.raises(WrongPassword):
        given(registered(ANNA)).when(change("wrong password"), by=ANNA)


def test_a_new_password_keeps_the_rule() -> None:
    with pytest.raises(Invalid) as refusal:
        given(registered(ANNA)).when(change(new="short"), by=ANNA)
    assert refusal.value.field == "new_password"


def test_the_same_password_again_is_no_change() -> None:
    assert given(registered(ANNA)).when(change(new=PASSWORD), by=ANNA) == Decision([])


def test_nobody_has_no_password_to_change() -> None:
    with pytest.raises(WrongPassword):
        given().when(change(), by=user_id(99))
