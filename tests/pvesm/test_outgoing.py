"""Exports that the recording does not have."""

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

from tests.patience import patience_s
from tests.pvesm.programs import MIB, PvesmCase, header

SLOW_SERVER = f"""\
#!{sys.executable} -I
import time
time.sleep(100)
"""


class ExportCase(PvesmCase):
    def setUp(self):
        super().setUp()
        self.folder = self.images / "100"
        self.folder.mkdir(parents=True)

    def export(self, volid, stream_format, *options, target="-", **more):
        process = self.start("export", volid, stream_format, target, *options, **more)
        out, err = process.communicate(timeout=patience_s())
        return process.returncode, out, err.decode()

    def volume(self, name, data) -> str:
        (self.folder / name).write_bytes(data)
        return f"local:100/{name}"


class RawTests(ExportCase):
    def sparse(self) -> tuple[str, bytes]:
        path = self.folder / "vm-100-disk-0.raw"
        with path.open("wb") as file:
            for offset in (0, 3 * MIB + 5, 9 * MIB, 16 * MIB - 3):
                file.seek(offset)
                file.write(b"xyz")
            file.truncate(20 * MIB + 1024)
        return "local:100/vm-100-disk-0.raw", path.read_bytes()

    def test_holes_are_zeros(self):
        volid, data = self.sparse()
        self.assertEqual(self.export(volid, "raw+size"), (0, header(len(data)) + data, ""))

    def test_into_a_file(self):
        volid, data = self.sparse()
        self.assertEqual(self.export(volid, "raw+size", target=self.root / "out"), (0, b"", ""))
        self.assertEqual((self.root / "out").read_bytes(), header(len(data)) + data)

    def test_into_a_file_that_is_appended_to(self):
        """The kernel's own copying refuses such a file."""
        volid, data = self.sparse()
        fd = os.open(self.root / "out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.export(volid, "raw+size", stdout=fd)
        os.close(fd)
        self.assertEqual((self.root / "out").read_bytes(), header(len(data)) + data)

    def test_into_a_socket_that_does_not_block(self):
        volid, data = self.sparse()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        process = self.start("export", volid, "raw+size", "-", stdout=theirs.fileno())
        theirs.close()
        got = bytearray()
        while piece := ours.recv(MIB):
            got += piece
        ours.close()
        process.wait(patience_s())
        self.assertEqual((process.returncode, bytes(got)), (0, header(len(data)) + data))

    def test_a_reader_that_goes_away(self):
        volid, _ = self.sparse()
        process = self.start("export", volid, "raw+size", "-")
        process.stdout.read(100)
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=patience_s())
        self.assertEqual((process.returncode, err), (255, b"[Errno 32] Broken pipe\n"))

    def test_round_trip(self):
        volid, data = self.sparse()
        export = self.start("export", volid, "raw+size", "-")
        done = self.start("import", "local:101/vm-101-disk-0.raw", "raw+size", "-", stdin=export.stdout)
        self.assertIn(b"successfully imported", done.communicate(timeout=patience_s())[0])
        path = self.images / "101/vm-101-disk-0.raw"
        self.assertEqual(path.read_bytes(), data)
        self.assertLess(path.stat().st_blocks * 512, MIB)

    def test_partial_streams_are_for_other_storages(self):
        volid, _ = self.sparse()
        for option in ("-snapshot", "-base"):
            code, out, err = self.export(volid, "raw+size", option, "s1")
            self.assertEqual((code, out), (255, b""))
            self.assertIn("volume export format raw+size not available", err)


class NamingTests(ExportCase):
    def test_no_volume_id(self):
        self.assertEqual(self.export("x", "raw+size"), (255, b"", "cannot export volume 'x'\n"))


class ImageTests(ExportCase):
    def test_vmdk(self):
        path = self.folder / "vm-100-disk-0.vmdk"
        self.qemu_img("create", "-f", "vmdk", path, "10M")
        done = self.export("local:100/vm-100-disk-0.vmdk", "vmdk+size", "-with-snapshots")
        self.assertEqual(done, (0, header(10 * MIB) + path.read_bytes(), ""))

    def test_qcow2_as_raw_of_an_odd_length(self):
        """Longer than one piece, the last piece shorter."""
        size = 3 * MIB + 512 * 7
        image = self.qcow2(size_bytes=size)
        self.qemu_img("convert", "-f", "qcow2", "-O", "raw", image, self.root / "plain")
        image.rename(self.folder / "vm-100-disk-0.qcow2")
        done = self.export("local:100/vm-100-disk-0.qcow2", "raw+size")
        self.assertEqual(done, (0, header(size) + (self.root / "plain").read_bytes(), ""))

    def test_no_server_is_left(self):
        image = self.qcow2()
        image.rename(self.folder / "vm-100-disk-0.qcow2")
        self.export("local:100/vm-100-disk-0.qcow2", "raw+size")
        self.until(lambda: str(self.folder) not in _all_command_lines())

    def test_no_server_is_left_however_early_it_ends(self):
        """Here qemu-nbd takes its time before it listens."""
        self.qcow2().rename(self.folder / "vm-100-disk-0.qcow2")
        programs = self.root / "bin"
        programs.mkdir()
        (programs / "qemu-nbd").write_text(SLOW_SERVER)
        (programs / "qemu-nbd").chmod(0o755)
        temporary = self.root / "tmp"
        temporary.mkdir()
        env = {"PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(temporary)}
        for number in (signal.SIGTERM, signal.SIGKILL):
            process = self.start("export", "local:100/vm-100-disk-0.qcow2", "raw+size", "-", env=env)
            self.until(lambda: str(self.folder) in _all_command_lines())
            process.send_signal(number)
            process.wait(patience_s())
            self.until(lambda: str(self.folder) not in _all_command_lines())
            self.assertEqual(list(temporary.iterdir()), [])

    def test_server_that_fails(self):
        """Its reason is ours, however late it comes."""
        self.qcow2().rename(self.folder / "vm-100-disk-0.qcow2")
        programs = self.root / "bin"
        programs.mkdir()
        (programs / "qemu-nbd").write_text("#!/bin/sh\nsleep 0.2\necho no luck >&2\nexit 1\n")
        (programs / "qemu-nbd").chmod(0o755)
        env = {"PATH": f"{programs}:{os.environ['PATH']}"}
        process = self.start("export", "local:100/vm-100-disk-0.qcow2", "raw+size", "-", env=env)
        _, errors = process.communicate(timeout=patience_s())
        self.assertEqual((process.returncode, errors), (255, b"qemu-nbd failed: no luck\n"))

    def test_linked_clones(self):
        base = self.folder / "base-100-disk-0.qcow2"
        self.qemu_img("create", "-f", "qcow2", base, "10M")
        clone = self.folder / "vm-100-disk-0.qcow2"
        self.qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", clone, "10M")
        for stream_format, options in (("qcow2+size", ("-with-snapshots", "1")), ("raw+size", ())):
            code, out, err = self.export("local:100/vm-100-disk-0.qcow2", stream_format, *options)
            self.assertEqual((code, out), (255, b""))
            self.assertEqual(err, f"cannot export 'local:100/vm-100-disk-0.qcow2': image has a backing file '{base}'\n")

    def test_no_image(self):
        volid = self.volume("vm-100-disk-0.qcow2", b"no image")
        code, out, err = self.export(volid, "qcow2+size", "-with-snapshots", "1")
        self.assertEqual((code, out, err), (255, b"", "image is not in qcow2 format\n"))

    def test_a_link_is_not_followed(self):
        (self.folder / "vm-100-disk-0.raw").symlink_to("/etc/passwd")
        code, out, _ = self.export("local:100/vm-100-disk-0.raw", "raw+size")
        self.assertEqual((code, out), (255, b""))


def _all_command_lines() -> str:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found.append(entry.read_bytes().decode(errors="replace"))
    return "\n".join(found)
