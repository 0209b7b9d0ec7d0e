"""The kinds of a tunnel's sockets: found by name, and written down in one place only."""

import ast
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import mtunnel_tx
from mtunnel_tx.wire.socketkinds import (
    COMMANDS,
    DISK_IMPORT,
    FORWARDED,
    MEMORY,
    NBD,
    SOCKET_KINDS,
    SocketFolder,
    find_socket_kind,
)

PACKAGE = Path(mtunnel_tx.__file__).parent


class SocketKinds(SynchronousTestCase):
    def test_a_kind_is_found_by_a_name_or_a_path(self):
        for name, kind in (
            ("/run/qemu-server/100.mtunnel", COMMANDS),
            ("100.storage", DISK_IMPORT),
            ("/run/qemu-server/100.migrate", MEMORY),
            ("/run/qemu-server/100_nbd.migrate", NBD),
            ("/run/qemu-server/100.other", FORWARDED),
            ("", FORWARDED),
        ):
            self.assertIs(find_socket_kind(name), kind, name)

    def test_what_depends_on_the_kind(self):
        self.assertEqual([kind for kind in SOCKET_KINDS if kind.urgent], [COMMANDS])
        self.assertEqual([kind for kind in SOCKET_KINDS if kind.single], [COMMANDS, DISK_IMPORT, MEMORY])
        # An importer may have more to say after its input; the others have not.
        self.assertEqual([kind for kind in SOCKET_KINDS if not kind.ends_both], [DISK_IMPORT])
        self.assertEqual([kind for kind in SOCKET_KINDS if kind.ends_both_at_source], [MEMORY, NBD])
        self.assertEqual([kind for kind in SOCKET_KINDS if kind.folder is SocketFolder.MACHINE], [MEMORY, NBD])

    def test_no_other_module_knows_a_suffix(self):
        found = [
            f"{file.relative_to(PACKAGE)}:{node.lineno} {node.value!r}"
            for file in sorted(PACKAGE.rglob("*.py"))
            if file.name != "socketkinds.py"
            for node in ast.walk(ast.parse(file.read_text("utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value
            if node.value.endswith(tuple(kind.suffix for kind in SOCKET_KINDS))
        ]
        self.assertEqual(found, [])
