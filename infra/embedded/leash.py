"""Becomes another program that can not outlive the process that started it.

Run as `python -I -S leash.py PARENT SIGNAL UID:GID CAPABILITY PROGRAM ARGUMENT…`. It has the kernel
send SIGNAL when PARENT ends in whatever way, gives up root for UID:GID (`-` keeps what it is), keeps
the one CAPABILITY (`-` for none), and executes PROGRAM under its own process id.

A program of its own rather than a `preexec_fn`: nothing runs between fork and exec in a process
that has threads. It imports little, since it stands in front of everything that starts. Linux
does all of it; elsewhere only the change of user is done.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
PR_SET_SECUREBITS = 28
SECBIT_NO_SETUID_FIXUP = 1 << 2
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAPABILITY_VERSION_3 = 0x20080522
EXIT_ORPHANED = 125


def main(parent: int, death_signal: int, user: str, capability: str, command: list[str]) -> None:
    """Does what the module says; does not come back."""
    if user != "-":
        uid, gid = map(int, user.split(":"))
        _become(uid, gid, None if capability == "-" else int(capability))
    if sys.platform == "linux":
        # After the change of user, which clears it.
        _prctl(PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        sys.exit(EXIT_ORPHANED)  # it ended before the kernel was asked to watch it
    os.execv(command[0], command)


def _become(uid: int, gid: int, capability: int | None) -> None:
    if capability is not None:
        # Keeps capabilities over the change of user, and has access(2) count them.
        _prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if capability is not None:
        _keep_only(capability)


def _keep_only(capability: int) -> None:
    word, bit = divmod(capability, 32)
    sets = [0] * 6  # effective, permitted, inheritable: lower words, then upper words
    sets[word * 3 : word * 3 + 3] = [1 << bit] * 3
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    if _libc().capset(header, (ctypes.c_uint32 * 6)(*sets)) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


def _prctl(option: int, first: int, second: int = 0) -> None:
    arguments = [ctypes.c_ulong(value) for value in (first, second, 0, 0)]
    if _libc().prctl(option, *arguments) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])
