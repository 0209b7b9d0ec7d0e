"""A stand-in for a node's own API: HTTPS, writes down what it was asked, answers as it was told."""

from __future__ import annotations

import json
import ssl
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mtunnel_tx.tls.certificate import fingerprint, make_certificate


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came."""

    method: str
    uri: str
    headers: dict[str, str]
    body: bytes


class StandInApi:
    """Listens on a port of its own. Args: folder: for its certificate."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[Asked] = []
        self.status = (200, "OK")
        self.body = b'{"data":["theirs"]}'
        pair = make_certificate("api")
        self.fingerprint = fingerprint(pair.certificate)
        file = folder / "api.pem"
        file.write_bytes(pair.key + pair.certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, status: int, reason: str, value: Any) -> None:
        """What to say from now on."""
        self.status = (status, reason)
        self.body = json.dumps(value).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                api.asked.append(Asked(self.command, self.path, dict(self.headers), body))
                self.send_response(*api.status)
                self.send_header("Content-Type", "application/json;charset=UTF-8")
                self.send_header("Content-Length", str(len(api.body)))
                self.end_headers()
                self.wfile.write(api.body)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                """Quietly."""

        return Handler
