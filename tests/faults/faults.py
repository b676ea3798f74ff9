"""Every fault of the suite, in the order of its table."""

from tests.faults import around, killing

FAULTS = (*killing.FAULTS, *around.FAULTS)
