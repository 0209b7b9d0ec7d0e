"""A daemon that has hardly a descriptor left for a moment: a stream that cannot be started ends, and its tunnel too."""

from __future__ import annotations

import contextlib
import resource
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.patience import wait_for
from tests.whole.limited import Case
from tests.whole.node import Node
from tests.whole.peer import Websocket, call

VMID = 100
MOST = 10
"""More than one websocket needs."""
MOMENT_S = 0.5


@contextlib.contextmanager
def descriptors_left(node: Node, count: int) -> Iterator[None]:
    """The daemon gets no more than so many new ones for a moment."""
    assert node.process is not None
    pid = node.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    free = sorted({*range(len(taken) + count + 1)} - taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[count], before[1]))
    moment = threading.Timer(MOMENT_S, resource.prlimit, (pid, resource.RLIMIT_NOFILE, before))
    moment.start()
    try:
        yield
    finally:
        moment.join()


class StreamTests(Case):
    limits = {"connect_s": 2}

    def test_with_any_number_left(self) -> None:
        for count in range(MOST):
            self.talk(VMID + count, count)
            wait_for(f"the end with {count} left", lambda: not self.node.ask(cmd="status")["tunnels"])
        self.node.assert_idle()

    def talk(self, vmid: int, count: int) -> None:
        """As far as that goes."""
        opened = call(self.node, "POST", f"/nodes/localhost/qemu/{vmid}/mtunnel", {"storages": "", "bridges": ""})
        given = opened.json["data"]
        with descriptors_left(self.node, count), contextlib.suppress(OSError, ssl.SSLError, AssertionError):
            stream = Websocket(self.node, vmid, given["socket"], given["ticket"])
            if stream.answer == 101:
                stream.send(b'{"cmd":"version"}\n')
                stream.read_line()
            stream.drop()


class WorkerTests(StreamTests):
    extra = 'workers = 1\nuser = "nobody"'
