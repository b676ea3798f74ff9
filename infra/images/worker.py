"""The child's side of `infra.images.pool`: the one process that lets decoders near a stranger's bytes.

Run as `python -m infra.images.worker LIMITS`, limits as JSON. Takes a job a line on stdin, answers
a line on stdout, and ends with stdin. It is nice to everyone else on the machine, and the kernel
holds it to its memory and to its CPU seconds a job.
"""

import math
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import BinaryIO

import msgspec

from domain.attachment import EXTENSIONS
from infra.errors import ImageRefused, ImageTooLarge
from infra.images import files, renditions
from infra.images.jobs import MAX_BYTES, MEGABYTE, Answer, Done, Failed, Job, Limits, Refused
from infra.priority import LAST, give_way

DETAIL_CHARACTERS = 4096


def main() -> None:
    limits = msgspec.json.decode(sys.argv[1], type=Limits)
    requests, answers = _pipes()
    be_nice()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, limits.memory_bytes)
    _limit(resource.RLIMIT_FSIZE, limits.output_bytes)
    _limit(resource.RLIMIT_NOFILE, limits.open_files)
    for line in requests:
        _allow_time(limits.cpu_seconds)
        answers.write(msgspec.json.encode(_answer(msgspec.json.decode(line, type=Job))) + b"\n")
        answers.flush()


def _pipes() -> tuple[BinaryIO, BinaryIO]:
    """What a library prints by itself is no answer."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return sys.stdin.buffer, answers


def be_nice() -> None:
    """To everyone else on the machine, as far as the kernel knows how."""
    give_way(LAST)
    # Any other that wakes up takes its processor at once, and is sent there rather than to wait.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _limit(kind: int, most: int) -> None:
    resource.setrlimit(kind, (most, most))


def _allow_time(seconds: int) -> None:
    """The kernel counts from the process's beginning, and ends it with SIGXCPU."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = math.ceil(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))


def _answer(job: Job) -> Answer:
    try:
        return _carry_out(job)
    except ImageRefused as refused:
        return Refused(kind=type(refused).__name__, detail=str(refused))
    except MemoryError:
        return Refused(kind=ImageTooLarge.__name__, detail="the image takes too much memory")
    except OSError as error:
        return Failed(detail=str(error)[:DETAIL_CHARACTERS], is_fault=False)
    except Exception:  # noqa: BLE001 - told to the parent, whose log has it
        return Failed(detail=traceback.format_exc()[-DETAIL_CHARACTERS:], is_fault=True)


def _carry_out(job: Job) -> Done:
    source = Path(job.source)
    if source.stat().st_size > MAX_BYTES:
        raise ImageTooLarge(f"an image may have {MAX_BYTES // MEGABYTE} MB at most")
    data = source.read_bytes()
    file_type = files.check(data)
    made = renditions.make(data, file_type, job.sizes)
    for size, rendition in made.items():
        path = Path(job.directory, f"{size}.{EXTENSIONS[file_type]}")
        path.write_bytes(rendition.data)
    first = made[job.sizes[0]]
    return Done(
        file_type=file_type, file_size=len(first.data), width=first.width, height=first.height
    )


if __name__ == "__main__":
    main()
