"""`infra.image_worker`, with points at which it can be made to end itself."""

import os
from pathlib import Path

from infra import image_worker
from infra.image_jobs import Done, Job
from tests.faults.points import (
    BEFORE_ANSWER_OF_WORKER,
    BEFORE_IMAGE,
    DIRECTORY_VARIABLE,
    Points,
)


def main() -> None:
    points = Points(Path(os.environ[DIRECTORY_VARIABLE]), "image-worker")
    carry_out = image_worker._carry_out

    def wrapped(job: Job) -> Done:
        points.reached(BEFORE_IMAGE)
        done = carry_out(job)
        points.reached(BEFORE_ANSWER_OF_WORKER)
        return done

    image_worker._carry_out = wrapped
    image_worker.main()


if __name__ == "__main__":
    main()
