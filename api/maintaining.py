"""`messenger maintain`: what has to be done from time to time, once or until a signal stops it."""

from contextlib import nullcontext

from api.daemons import scraped, telling, until_signal
from api.stream.presence import Leases
from api.writing import writing
from infra import database
from infra.history import Witness
from infra.housekeeping import Housekeeping
from infra.metrics import UpkeepMetrics
from infra.objects import Objects
from infra.passwords import Passwords
from infra.removals import Removals
from infra.settings import Settings


async def maintain(settings: Settings, *, once: bool) -> None:
    """Raises Unavailable where it shall be done once and can't be, or Stopped."""
    logger, registry = telling(settings, "maintain")
    name = "maintain" if once else database.process_name("maintain")
    passwords = Passwords(rounds=settings.bcrypt_rounds)
    counted = UpkeepMetrics(registry)
    async with (
        nullcontext() if once else scraped(settings, registry),
        writing(settings, name=name, passwords=passwords, registry=registry) as parts,
        Objects(settings) as objects,
    ):
        removals = Removals(
            parts.pool,
            parts.executor,
            parts.keyring,
            objects,
            logger,
            unsent_seconds=settings.attachment_unsent_seconds,
            metrics=counted,
        )
        leases = Leases(parts.pool, parts.executor)
        housekeeping = Housekeeping(
            parts.pool,
            logger,
            archive_tablespace=settings.archive_tablespace,
            archive_months=settings.archive_months,
            metrics=counted,
        )
        if once:
            try:
                await housekeeping.once()
            finally:
                await removals.once()
                await leases.reap()
        else:
            # What it remembers of the log has to be of this one.
            witness = Witness(parts.pool, parts.bus)
            await until_signal(
                parts.keyring.watch(),
                removals.run(),
                leases.reap_forever(logger),
                housekeeping.run(),
                witness.watch(),
            )
