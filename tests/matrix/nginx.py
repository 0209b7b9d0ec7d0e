"""A real nginx with its defaults in front of a node's daemon."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from tests.patience import wait_for
from tests.processes import started_process
from tests.whole.node import Node
from tests.whole.test_proxy import CONFIGURATION, DEFAULT, find_nginx


def start_nginx(owner: ExitStack, node: Node) -> int:
    """Returns: its port. Raises: SkipTest: it is not installed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    folder = node.root / "nginx"
    folder.mkdir()
    places = {"folder": folder, "tls": node.state / "tls", "port": port, "daemon": node.port}
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(timeouts=DEFAULT, **places))
    command = [find_nginx(), "-p", str(folder), "-c", str(configuration)]
    with (folder / "nginx.log").open("ab") as log:
        started_process(owner.callback, command, stdout=log, stderr=log)
    wait_for(f"nginx\n{folder}", lambda: _listens(port))
    return port


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
