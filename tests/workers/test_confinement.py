"""What somebody who has taken over a worker can still do: a program tries, after it has confined itself."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.processes import run_program

PROGRAM = """
import ctypes, json, os, resource, signal, socket, sys, threading
from mtunnel_tx.workers.process.confinement import confine

given, listener, folder = socket.socketpair(), sys.argv[1], sys.argv[2]
secret, parent = folder + "/secret", os.getppid()
libc = ctypes.CDLL(None, use_errno=True)


def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")


def reach():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(listener)


def work():
    given[0].send(b"x")
    thread = threading.Thread(target=given[1].recv, args=(1,))
    thread.start()
    thread.join()
    number = os.memfd_create("certificate")
    os.write(number, b"x")
    with open(f"/proc/self/fd/{number}", "rb") as file:
        assert file.read() == b"x"
    import decimal, sqlite3


DEEDS = {
    "work": work,
    "read a file": lambda: open(secret).close(),
    "list a folder": lambda: os.listdir(folder),
    "write a file": lambda: open(secret, "a").close(),
    "make a file": lambda: open(folder + "/new", "x").close(),
    "remove a file": lambda: os.unlink(secret),
    "make a socket": lambda: socket.socket().close(),
    "reach a socket": reach,
    "make a process": os.fork,
    "become a program": lambda: os.execv(sys.executable, [sys.executable, "-c", ""]),
    "signal another process": lambda: os.kill(parent, 0),
    "read another's memory": lambda: open(f"/proc/{parent}/mem", "rb").close(),
    "read another's environment": lambda: open(f"/proc/{parent}/environ", "rb").close(),
    "trace another": lambda: call(101, 16, parent, 0, 0) if os.uname().machine == "x86_64" else call(117, 16, parent),
    "io_uring": lambda: call(425, 1, 0),
    "leave the filter": lambda: call(446, -1, 0),
    "leave a core file": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)),
}


def attempt(deed):
    try:
        deed()
    except OSError as error:
        return os.strerror(error.errno)
    except ValueError as error:
        return str(error)
    return "done"


missing = confine()
print(json.dumps({"missing": missing, "done": {name: attempt(deed) for name, deed in DEEDS.items()}}))
"""
HELD = "Operation not permitted"
CLOSED = "Permission denied"


class ConfinementTests(SynchronousTestCase):
    def test_what_is_left(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="confined-"))
        self.addCleanup(shutil.rmtree, folder)
        (folder / "secret").write_text("key")
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(str(folder / "listener"))
        listener.listen()
        argv = [sys.executable, "-c", PROGRAM, str(folder / "listener"), str(folder)]
        found = json.loads(run_program(argv, capture_output=True, text=True).stdout)
        if found["missing"]:
            self.skipTest("; ".join(found["missing"]))
        self.assertEqual(found["done"].pop("work"), "done")
        self.assertEqual(found["done"].pop("leave a core file"), "not allowed to raise maximum limit")
        read = {"read a file", "list a folder", "read another's memory", "read another's environment"}
        self.assertEqual(found["done"], {name: CLOSED if name in read else HELD for name in found["done"]})
        self.assertEqual(sorted(path.name for path in folder.iterdir()), ["listener", "secret"])
