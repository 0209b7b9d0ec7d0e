"""A filter of system calls (seccomp) for the rest of a process's life; what it does not name fails with EPERM.

libseccomp knows the calls' numbers on every architecture; Debian's apt and systemd bring it along.
Sources: seccomp_rule_add(3), seccomp_init(3), seccomp_attr_set(3).
"""

from __future__ import annotations

import ctypes
import errno
import os
import termios
from dataclasses import dataclass

LIBRARY = "libseccomp.so.2"
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_EQUAL, _MASKED_EQUAL = 4, 7
_ALL_THREADS, _OPTIMIZE = 4, 8
_BINARY_TREE = 2
_UNKNOWN = -1
_CLONE_THREAD = 0x10000
_PR_SET_NAME = 15
_WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC

ALLOWED = """
    read readv pread64 write writev recvfrom recvmsg sendto sendmsg shutdown close lseek dup dup2 dup3 fcntl pipe2
    getsockopt setsockopt getsockname getpeername
    epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6 eventfd2
    mmap munmap mremap mprotect madvise brk membarrier memfd_create fchmod
    futex set_robust_list get_robust_list rseq gettid set_tid_address sched_yield sched_getaffinity exit exit_group
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall
    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time
    stat fstat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents64 getcwd
    getpid getppid getuid geteuid getgid getegid getrandom getrusage getrlimit uname sysinfo
"""
"""Calls that need nothing but what a process has already, or look at what it may see."""


class _Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


@dataclass(frozen=True, slots=True)
class _Rule:
    """A call that is allowed where an argument, masked, has this value."""

    name: str
    argument: int
    value: int
    mask: int | None = None

    @property
    def comparison(self) -> _Comparison:
        if self.mask is None:
            return _Comparison(self.argument, _EQUAL, self.value, 0)
        return _Comparison(self.argument, _MASKED_EQUAL, self.mask, self.value)


def _rules() -> tuple[_Rule, ...]:
    """Calls of which a part is allowed: files only to be read, threads and no processes, signals to itself."""
    controls = (termios.FIONBIO, termios.FIOCLEX, termios.FIONCLEX, termios.FIONREAD, termios.TIOCOUTQ, termios.TCGETS)
    return (
        _Rule("openat", 2, 0, _WRITING),
        _Rule("open", 1, 0, _WRITING),
        _Rule("clone", 0, _CLONE_THREAD, _CLONE_THREAD),
        _Rule("prctl", 0, _PR_SET_NAME),
        _Rule("prlimit64", 2, 0),
        _Rule("tgkill", 0, os.getpid()),
        *(_Rule("ioctl", 1, control) for control in controls),
    )


class FilterRefused(Exception):
    """There is no filter; the text says why."""


def filter_calls() -> None:
    """Put the filter in force, for all threads. Raises: FilterRefused."""
    library = _load()
    context = library.seccomp_init(_FAIL | errno.EPERM)
    if not context:
        raise FilterRefused(f"{LIBRARY} makes no filter")
    try:
        for attribute, value in ((_ALL_THREADS, 1), (_OPTIMIZE, _BINARY_TREE)):
            library.seccomp_attr_set(context, attribute, value)
        for name in ALLOWED.split():
            _add(library, context, name, _ALLOW)
        for rule in _rules():
            _add(library, context, rule.name, _ALLOW, rule.comparison)
        # The C library then makes threads by `clone`, whose flags a filter can see.
        _add(library, context, "clone3", _FAIL | errno.ENOSYS)
        _check(library.seccomp_load(context), "the kernel takes no filter")
    finally:
        library.seccomp_release(context)


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise FilterRefused(f"{LIBRARY} is not there") from error
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_release.argtypes = library.seccomp_load.argtypes = (ctypes.c_void_p,)
    library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
    library.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Comparison),
    )  # fmt: skip
    return library


def _add(library: ctypes.CDLL, context: int, name: str, answer: int, comparison: _Comparison | None = None) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == _UNKNOWN:
        return  # a library older than the call
    given = None if comparison is None else ctypes.byref(comparison)
    _check(library.seccomp_rule_add_array(context, answer, number, int(comparison is not None), given), name)


def _check(code: int, what: str) -> None:
    if code < 0:
        raise FilterRefused(f"{what}: {os.strerror(-code)}")
