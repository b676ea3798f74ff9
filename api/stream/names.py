"""What users are called now: loaded once, kept current by the log, forgotten when erased."""

from collections.abc import Iterable

from domain.event import Event
from domain.ids import UserId, user_stream
from domain.user import AccountDeleted, ProfileUpdated
from infra.executor import Executor
from infra.keyring import KeyId, Keyring
from projections.users import ERASED_NAME

MAX_NAMES = 50_000


class Names:
    """`load` before `of`."""

    def __init__(self, executor: Executor, keyring: Keyring) -> None:
        self._executor = executor
        self._names: dict[UserId, str] = {}
        keyring.listen(self._erase)

    async def load(self, user_ids: Iterable[UserId]) -> None:
        unknown = {user_id for user_id in user_ids if user_id not in self._names}
        if not unknown:
            return
        if len(self._names) + len(unknown) > MAX_NAMES:
            self._names.clear()
        await self._executor.refresh([user_stream(user_id) for user_id in unknown])
        for user_id in unknown:
            known = self._executor.states.get(user_stream(user_id))
            name = known.state.display_name if known is not None else None
            self._names[user_id] = name or ERASED_NAME

    def of(self, user_id: UserId) -> str:
        return self._names.get(user_id, ERASED_NAME)

    def apply(self, event: Event) -> None:
        """`event` is opened."""
        match event:
            case ProfileUpdated() if event.user_id in self._names:
                self._names[event.user_id] = event.display_name or ERASED_NAME
            case AccountDeleted():
                self._names.pop(event.user_id, None)
            case _:
                pass

    def _erase(self, key_id: KeyId) -> None:
        if key_id.purpose == "profile":
            self._names.pop(key_id.user_id, None)
