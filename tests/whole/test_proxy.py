"""Through a real nginx: connections that say nothing for long stay open."""

from __future__ import annotations

import shutil
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import patience_s, wait_for
from tests.processes import started_process
from tests.whole.hostile import start_import
from tests.whole.node import Node
from tests.whole.peer import Tunnel, call
from tests.whole.test_online import OnlineCase

CONFIGURATION = """\
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr notice;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {tls}/certificate.pem;
        ssl_certificate_key {tls}/key.pem;
        location / {{
            proxy_pass https://127.0.0.1:{daemon};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            {timeouts}
        }}
    }}
}}
"""
SHORT = "proxy_read_timeout 3s; proxy_send_timeout 3s;"
DEFAULT = ""
DEFAULT_S = 60.0


@dataclass
class Behind:
    """A node whose port is that of a proxy; for peers that only connect."""

    node: Node
    port: int

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def authorization(self) -> str:
        return self.node.authorization

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 30)


def find_nginx() -> str:
    found = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if found is None:
        raise SkipTest("nginx is not installed (Debian: nginx-light)")
    return found


class ProxyCase(SynchronousTestCase):
    def through(self, timeouts: str, extra: str = "") -> Behind:
        """A daemon behind nginx."""
        find_nginx()
        node = Node(extra=extra)
        self.addCleanup(node.close)
        return self.in_front_of(node.start(), timeouts)

    def in_front_of(self, node: Node, timeouts: str) -> Behind:
        """Let nginx lead to a daemon that runs."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        folder = node.root / "nginx"
        folder.mkdir()
        places = {"folder": folder, "tls": node.state / "tls", "port": port, "daemon": node.port}
        configuration = folder / "nginx.conf"
        configuration.write_text(CONFIGURATION.format(timeouts=timeouts, **places))
        self.behind = Behind(node, port)
        self.start_nginx(folder)
        return self.behind

    def start_nginx(self, folder: Path) -> None:
        with (folder / "nginx.log").open("ab") as log:
            command = [find_nginx(), "-p", str(folder), "-c", str(folder / "nginx.conf")]
            self.nginx = started_process(self.addCleanup, command, stdout=log, stderr=log)
        wait_for(f"nginx\n{folder}", lambda: self.answers(self.behind))

    def answers(self, behind: Behind) -> bool:
        try:
            return call(behind, "GET", "/version").status == 200
        except OSError:
            return False

    def is_open_after(self, behind: Behind, silent_s: float) -> bool:
        """Say nothing on a command connection and an import for so long. Returns: both are still there."""
        tunnel = Tunnel(behind, 100, storages="local", bridges="")
        stream = tunnel.stream(start_import(tunnel)["socket"])
        time.sleep(silent_s)
        try:
            return bool(tunnel.ask(cmd="version")["success"]) and tunnel.ask(cmd="query-disk-import")["success"]
        except (AssertionError, OSError):
            return False
        finally:
            stream.drop()
            tunnel.commands.drop()
            wait_for("the end of the tunnel", lambda: not behind.node.ask(cmd="status")["tunnels"])


class ShortTests(ProxyCase):
    def test_pings_keep_silent_connections(self) -> None:
        self.assertTrue(self.is_open_after(self.through(SHORT, "[limits]\nping_s = 1"), 8))

    def test_without_them_nginx_ends_them(self) -> None:
        behind = self.through(SHORT, "[limits]\nping_s = 600")
        self.assertFalse(self.is_open_after(behind, 8))


class DefaultTests(ProxyCase):
    def test_nothing_is_configured(self) -> None:
        """As long as it takes: nginx's own 60 s, and our own 25 s."""
        self.assertTrue(self.is_open_after(self.through(DEFAULT), DEFAULT_S + 8))


class MoveTests(OnlineCase, ProxyCase):
    """A running VM, moved so slowly that the command connection has nothing to say for longer than nginx waits."""

    def make_target(self) -> Node:
        return Node("there", extra="[limits]\nping_s = 1").start()

    def find_endpoint(self) -> str:
        behind = self.in_front_of(self.there, SHORT)
        endpoint = self.there.endpoint.replace(f"port={self.there.port}", f"port={behind.port}")
        self.assertNotEqual(endpoint, self.there.endpoint)
        return endpoint

    def test_nginx_is_restarted(self) -> None:
        """It says goodbye on all connections, and for a while nobody listens."""
        self.boot()
        argv = [sys.executable, "-m", "mtunnel_tx.cli", "migrate", "100", self.find_endpoint(), "--online"]
        migration = self.start([*argv, "--target-vmid", "200", "--target-storage", "local", "--bwlimit", "4096"])
        wait_for("data", lambda: any(one["bytes_in"] > 4 << 20 for one in self.there.ask(cmd="status")["tunnels"]))
        self.nginx.terminate()
        self.nginx.wait(patience_s())
        wait_for("parked flows", lambda: self.there.ask(cmd="status")["tunnels"][0]["parked"])
        self.start_nginx(self.there.root / "nginx")
        out, err = migration.communicate(timeout=patience_s(120))
        self.assertEqual(migration.returncode, 0, (out, err))
        self.assertRegex(out, r"connection lost, waiting (?s:.*)resumed after 0:\d\d")
        self.assertIn("running", self.status(self.there, 200))
        wait_for("the end of the tunnel", lambda: not self.there.ask(cmd="status")["tunnels"])

    def test_online(self) -> None:
        self.boot()
        argv = ("migrate", "100", self.find_endpoint(), "--online", "--target-vmid", "200", "--target-storage", "local")
        began_s = time.monotonic()
        self.here.run("mtunnel_tx.cli", *argv, "--bwlimit", "2048")
        self.assertGreater(time.monotonic() - began_s, 6)
        self.assertIn("running", self.status(self.there, 200))
        wait_for("the end of the tunnel", lambda: not self.there.ask(cmd="status")["tunnels"])
