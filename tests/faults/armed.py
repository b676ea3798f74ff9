"""`messenger`, with points at which it can be made to end itself (tests.faults.points)."""

import os
import sys
from pathlib import Path

from tests.faults.points import DIRECTORY_VARIABLE, Points, role_of, wrap

if __name__ == "__main__":
    from api.cli import main

    arguments = sys.argv[1:]
    wrap(Points(Path(os.environ[DIRECTORY_VARIABLE]), role_of(arguments)), arguments[0])
    main()
