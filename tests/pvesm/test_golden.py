"""Every row of the recording of Proxmox's own pvesm, replayed against ours.

Where protocol.md section 9 asks for more than Proxmox does, STRICTER says what comes instead.
"""

import errno
import json
import os
import re
import socket
from pathlib import Path

from tests.patience import patience_s
from tests.pvesm.programs import MIB, Done, PvesmCase, header

ROWS = {row["case"]: row for row in map(json.loads, (Path(__file__).parents[1] / "golden/pvesm.jsonl").open())}
PRESENT = ("local:100/vm-100-disk-8.raw", "local:100/vm-100-disk-9.qcow2")

STRICTER = {
    # A raw stream that is not as long as its header says fails; nothing is left of it.
    "import raw+size truncated half": (
        "size 10485760",
        "import: stream ended after 4194296 of 10485760 bytes\n",
    ),
    "import raw+size more data than size": ("size 1048576", "import: stream is longer than 1048576 bytes\n"),
    # No header goes out for a volume that is not there, no conversion into a pipe is tried.
    "export missing volume": ("", "failed to stat 'LOCAL/images/100/vm-100-disk-77.raw'\n"),
}
# The time limit is tried by tests.pvesm.test_streams, where it is short.
NOT_HERE = {"import never connected (30s timeout)"}


class GoldenCase(PvesmCase):
    """A storage as it was when the row was recorded."""

    def setUp(self):
        super().setUp()
        folder = self.images / "100"
        folder.mkdir(parents=True)
        self.folder = folder
        with (folder / "vm-100-disk-8.raw").open("wb") as file:
            file.write(b"data")
            file.truncate(10 * MIB)
        self.source = self.qcow2()
        os.link(self.source, folder / "vm-100-disk-9.qcow2")

    def adapt(self, text: str) -> str:
        return text.replace("/var/lib/vz", str(self.root / "local"))

    def words(self, row) -> list[str]:
        names = {
            "unix:///run/x.sock": self.url(),
            "unix:///run/busy.sock": f"unix://{self.root}/busy.sock",
        }
        return [names.get(word, word) for word in row["argv"][1:]]

    def prepare(self, row):
        """Names that the recording says are taken."""
        texts = row.get("stderr", "") + row.get("stdout", "")
        for taken in re.findall(r"images/100/(\S+)' already exists", texts):
            (self.folder / taken).touch()
        wanted = re.search(r"disk-(\d+)\.\w+', fmt", row.get("stdout_after_ready", "") + row.get("stdout", ""))
        if wanted and "already exists" in texts:
            for number in range(int(wanted[1])):
                if not list(self.folder.glob(f"vm-100-disk-{number}.*")):
                    (self.folder / f"vm-100-disk-{number}.raw").touch()

    def payload(self, row) -> bytes:
        if row["argv"][3:4] == ["qcow2+size"] and row["argv"][2].endswith("qcow2"):
            return header(10 * MIB) + self.source.read_bytes()
        length = row.get("payload_len", 10 * MIB + 8)
        size = {1008: 1000, 3 * MIB + 8: MIB}.get(length, 10 * MIB)
        return (header(size) + bytes(range(256)) * (length // 256))[:length].ljust(length, b"x")

    def run_row(self, row) -> Done:
        self.prepare(row)
        words = self.words(row)
        if row.get("ready_line"):
            return self.import_socket(*words[1:], payload=self.payload(row))
        return self.pvesm(*words, given=self.payload(row))

    def check(self, row, done: Done):
        if row["case"] in STRICTER:
            self.check_stricter(row, done)
            return
        self.assertEqual(done.err, self.adapt(row["stderr"]))
        self.assertEqual(done.code, row["rc"])
        self.assertEqual(done.out, self.adapt(row.get("stdout_after_ready", row.get("stdout"))))

    def check_stricter(self, row, done: Done):
        said, complaint = STRICTER[row["case"]]
        self.assertEqual(done.err, complaint.replace("LOCAL", str(self.root / "local")))
        self.assertNotEqual(done.code, 0)
        self.assertNotIn("successfully", done.out)
        self.assertIn(said.replace("size ", "size="), done.out)
        self.assertEqual(
            sorted(path.name for path in self.folder.iterdir()), ["vm-100-disk-8.raw", "vm-100-disk-9.qcow2"]
        )


class ImportRows(GoldenCase):
    """Filled below: a method a row."""


class ExportRows(GoldenCase):
    def export(self, case) -> tuple[dict, int, bytes, str]:
        row = ROWS[case]
        process = self.start(*self.words(row))
        out, err = process.communicate(timeout=patience_s())
        return row, process.returncode, out, err.decode()

    def test_raw(self):
        row, code, out, err = self.export("export raw+size of raw")
        self.assertEqual((code, err), (row["rc"], row["stderr"]))
        self.assertEqual(f"<{len(out)} bytes>", row["stdout"])
        self.assertEqual(out, header(10 * MIB) + (self.folder / "vm-100-disk-8.raw").read_bytes())

    def test_qcow2_verbatim(self):
        row, code, out, err = self.export("export qcow2+size with snapshots")
        self.assertEqual((code, err), (row["rc"], row["stderr"]))
        self.assertEqual(out, header(10 * MIB) + self.source.read_bytes())

    def test_qcow2_as_raw_works_here(self):
        """Proxmox fails: qemu-img cannot write raw into a pipe."""
        _, code, out, err = self.export("export raw+size of a qcow2 file (no snapshots)")
        self.assertEqual((code, err), (0, ""))
        self.qemu_img("convert", "-f", "qcow2", "-O", "raw", self.source, self.root / "plain")
        self.assertEqual(out, header(10 * MIB) + (self.root / "plain").read_bytes())

    def refused(self, case):
        row, code, out, err = self.export(case)
        self.assertEqual((code, out.decode(), err), (row["rc"], row["stdout"], row["stderr"]))

    def test_qcow2_without_snapshots(self):
        self.refused("export qcow2+size WITHOUT snapshots")

    def test_raw_with_snapshots(self):
        self.refused("export raw+size with snapshots")

    def test_unknown_format(self):
        self.refused("export unknown format")

    def test_missing_volume(self):
        row, code, out, err = self.export("export missing volume")
        self.assertEqual(code, row["rc"])
        self.assertEqual(out, b"")
        self.assertEqual(err, self.adapt(row["stderr"].splitlines(keepends=True)[0]))


class CoverageTests(GoldenCase):
    def test_no_row_is_forgotten(self):
        exports = {case for case in ROWS if case.startswith("export")}
        self.assertEqual(len(exports), len([name for name in dir(ExportRows) if name.startswith("test_")]))
        imports = {name for name in dir(ImportRows) if name.startswith("test_")}
        self.assertEqual(len(imports) + len(exports) + len(NOT_HERE), len(ROWS))

    def test_busy_socket_has_the_number_that_was_recorded(self):
        self.assertEqual(ROWS["import unix path exists already"]["rc"], errno.EADDRINUSE)


def _make_test(row):
    def test(self):
        with socket.socket(socket.AF_UNIX) as busy:
            busy.bind(f"{self.root}/busy.sock")
            self.check(row, self.run_row(row))
        self.assertFalse(self.socket.exists())

    return test


for _case, _row in ROWS.items():
    if _case.startswith("import") and _case not in NOT_HERE:
        setattr(ImportRows, "test_" + re.sub(r"\W+", "_", _case.removeprefix("import ")), _make_test(_row))
