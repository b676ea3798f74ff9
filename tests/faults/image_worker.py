"""`infra.images.worker`, with points at which it can be made to end itself."""

import os
from pathlib import Path

from infra.images import worker
from infra.images.jobs import Done, Job
from tests.faults.points import (
    BEFORE_ANSWER_OF_WORKER,
    BEFORE_IMAGE,
    DIRECTORY_VARIABLE,
    Points,
)


def main() -> None:
    points = Points(Path(os.environ[DIRECTORY_VARIABLE]), "image-worker")
    carry_out = worker._carry_out

    def wrapped(job: Job) -> Done:
        points.reached(BEFORE_IMAGE)
        done = carry_out(job)
        points.reached(BEFORE_ANSWER_OF_WORKER)
        return done

    worker._carry_out = wrapped
    worker.main()


if __name__ == "__main__":
    main()
