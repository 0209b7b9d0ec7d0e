"""An ssh server on a loopback port, with keys that live as long as it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.peers import free_port
from bench.processes import Trouble, started, wait_until_listening

ROOM = Path("build/bench").resolve()
CIPHER = "aes256-gcm@openssh.com"
"""What our TLS uses; ssh would take a slower one."""
_SERVER = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/login.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PidFile none
Ciphers {cipher}
Subsystem sftp internal-sftp
"""
_CLIENT = """\
Host *
  IdentityFile {folder}/login
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile {folder}/known
  LogLevel ERROR
  Port {port}
  Ciphers {cipher}
  Compression no
  BatchMode yes
"""
# The server's package is unpacked, not installed. As root it wants a user and a folder of its own, which only it gets.
_ENTER = """\
grep -v ^sshd: /etc/passwd >"$1/passwd"
echo 'sshd:x:65533:65534::/run/sshd:/bin/false' >>"$1/passwd"
mount --bind "$1/passwd" /etc/passwd
mount -t tmpfs none /run && mkdir -m 755 /run/sshd && shift && exec "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """A way to run commands at the other end. command: ssh with its options. pid: the server's."""

    command: list[str]
    host: str
    pid: int


def find_server() -> str:
    """Raises: Trouble: there is none."""
    found = shutil.which("sshd", path="/usr/sbin") or shutil.which("sshd", path=str(ROOM / "openssh/usr/sbin"))
    if found is None:
        raise Trouble("no sshd here")
    return found


@contextmanager
def shell(folder: Path) -> Iterator[Shell]:
    """Let a server run for the length of the block. Raises: Trouble."""
    port, server = free_port(), find_server()
    for name in ("host", "login"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(argv, check=True, capture_output=True)
    for name, text in (("server.conf", _SERVER), ("client.conf", _CLIENT)):
        (folder / name).write_text(text.format(port=port, folder=folder, cipher=CIPHER))
    session = Path(server).parents[1] / "lib/openssh/sshd-session"
    if session.exists():
        with (folder / "server.conf").open("a") as file:
            file.write(f"SshdSessionPath {session}\nSshdAuthPath {session.with_name('sshd-auth')}\n")
    argv = [server, "-D", "-e", "-f", str(folder / "server.conf")]
    if os.getuid() == 0:
        argv = ["unshare", "--mount", "sh", "-euc", _ENTER, "sh", str(folder), *argv]
    log = folder / "sshd.log"
    with started(argv, log) as process:
        wait_until_listening(process, port, log)
        command = ["ssh", "-F", shlex.quote(str(folder / "client.conf"))]
        yield Shell(command=command, host="127.0.0.1", pid=process.pid)
