"""update-profile: display name and avatar; what is left out stays, null clears."""

from msgspec import UNSET, UnsetType

from commands.command import AvatarUrl, Command, Context, Decision, DisplayName, View
from domain.refusals import NotFound
from domain.user import ProfileUpdated


class UpdateProfile(Command, frozen=True, kw_only=True):
    display_name: DisplayName | UnsetType | None = UNSET
    avatar_url: AvatarUrl | UnsetType | None = UNSET


def decide(update: UpdateProfile, context: Context, view: View) -> Decision:
    user = view.user(context.actor)
    if not user.exists or user.registration is None:
        raise NotFound("there is no such account")
    display_name = user.display_name if update.display_name is UNSET else update.display_name
    # Cleared, it is what it is for one who never gave any (data-model.md, users).
    display_name = display_name or user.registration.username
    avatar_url = user.avatar_url if update.avatar_url is UNSET else update.avatar_url
    if (display_name, avatar_url) == (user.display_name, user.avatar_url):
        return Decision([])
    updated = ProfileUpdated(
        user_id=context.actor, display_name=display_name, avatar_url=avatar_url
    )
    return Decision([updated])
