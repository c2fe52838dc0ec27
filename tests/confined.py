"""Runs a program as a unit of systemd confines it, by the same means of the kernel: seccomp, and no executable memory.

    python -m tests.confined CONFINEMENT PROGRAM ARGUMENT...

CONFINEMENT is JSON: `calls` that may be made, `families` of sockets that may be opened, by their numbers, and whether
memory may be `executable` once it has been written.
"""

import ctypes
import errno
import json
import mmap
import os
import sys

UNKNOWN = 77
"""It ends with this where the kernel can't do so."""

_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM  # SCMP_ACT_ALLOW, SCMP_ACT_ERRNO(EPERM)
_EQUAL = 4  # SCMP_CMP_EQ
_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS
_NO_EXECUTABLE_MEMORY = 65, 1  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN


class _Compared(ctypes.Structure):
    """An argument of a call, as libseccomp has it compared."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def _confine(calls: list[str], families: list[int], *, executable: bool) -> None:
    libc, libseccomp = ctypes.CDLL(None), ctypes.CDLL("libseccomp.so.2")
    if not executable and libc.prctl(*_NO_EXECUTABLE_MEMORY, 0, 0, 0):
        sys.exit(UNKNOWN)
    libseccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(libseccomp.seccomp_init(_REFUSE))
    for name in calls:
        number = libseccomp.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # of another architecture, or of a later kernel
            continue
        if name != "socket":
            assert libseccomp.seccomp_rule_add(context, _ALLOW, number, 0) == 0, name
            continue
        for family in families:
            compared = _Compared(0, _EQUAL, family, 0)
            assert libseccomp.seccomp_rule_add_array(context, _ALLOW, number, 1, ctypes.byref(compared)) == 0, family
    assert libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
    assert libseccomp.seccomp_load(context) == 0


def _check() -> None:
    """Fail if nothing has changed: then nothing would be shown."""
    refused = 0
    for attempt in (
        lambda: mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_WRITE | mmap.PROT_EXEC),
        lambda: os.nice(1),  # of @resources
        lambda: os.chroot("/"),  # of @privileged
    ):
        try:
            attempt()
        except PermissionError:
            refused += 1
    assert refused == 3, refused


if __name__ == "__main__":
    told, *command = sys.argv[1:]
    _confine(**json.loads(told))
    _check()
    os.execvp(command[0], command)
