"""The logs that ship with the tests, and counts of logs made apart from the importer's code.

`spoken` reads raw bytes with expressions of its own: what each nick said, `/me` included.
"""

import re
from collections import Counter
from pathlib import Path

DIRECTORY = Path(__file__).parent.parent / "data" / "irc"
EVENING = DIRECTORY / "2010-01-04_21.raw.txt"
LATER = DIRECTORY / "2010-01-06.train-x.raw.txt"
# The corpus that the project was built beside; it is not part of it.
CORPUS = Path(__file__).parents[3] / "shared" / "data" / "ubuntu-irc"

MESSAGE = re.compile(rb"\[(?:[01][0-9]|2[0-3]):[0-5][0-9]\] <([^>]*)> (.+)", re.DOTALL)
ACTION = re.compile(rb"\[(?:[01][0-9]|2[0-3]):[0-5][0-9]\]  \* ([^ ]+) (.+)", re.DOTALL)
OLD_ACTION = re.compile(rb"=== ((?:\] |[^ \]]+|\])+) (.+)", re.DOTALL)
NO_ACTION = re.compile(
    rb"=== (mode/#|Topic |\.\.\[topic/|.* \[.*\]  has (joined|left) #|.* is now known as "
    rb"|\S+ changed the topic of #)"
)


def spoken(path: Path) -> Counter[bytes]:
    """How many messages of each nick a log holds."""
    counts: Counter[bytes] = Counter()
    for line in path.read_bytes().split(b"\n"):
        found = MESSAGE.fullmatch(line) or ACTION.fullmatch(line)
        if found is None and not NO_ACTION.match(line):
            found = OLD_ACTION.fullmatch(line)
        if found is not None and found[1].strip() and found[2].strip(b"\r"):
            counts[found[1].strip()] += 1
    return counts


def line_count(path: Path) -> int:
    return path.read_bytes().count(b"\n")
