"""Drive strings, and drives as a source sends them."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.checks import FormatError
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.drive import (
    DRIVE_KEYS,
    Drive,
    drive_interface,
    format_drive,
    format_size,
    is_drive_key,
    parse_drive,
    parse_size,
)

REAL = (
    ("scsi0", "local:100/vm-100-disk-0.qcow2,discard=on,format=qcow2,size=1G"),
    ("scsi1", "ceph:vm-100-disk-1,aio=io_uring,backup=0,cache=writeback,discard=on,iothread=1,size=500G,ssd=1"),
    (
        "scsi2",
        "lvm:vm-1-disk-2,iops_rd=1,iops_rd_max=2,iops_rd_max_length=5,mbps_wr=1.5,product=P,queues=4,vendor=V",
    ),
    ("virtio0", "zfs:base-9-disk-0/vm-100-disk-0,replicate=0,ro=1,serial=a%20b,shared=1,size=32G,werror=enospc"),
    ("sata3", "/dev/disk/by-id/wwn-0x5000,detect_zeroes=0,rerror=stop,size=976762584K,wwn=0x5000c500a1b2c3d4"),
    ("ide2", "local:iso/debian.iso,media=cdrom,size=600M"),
    ("ide0", "local:100/vm-100-cloudinit.qcow2,media=cdrom,size=4M"),
    ("ide1", "none,media=cdrom"),
    ("ide3", "cdrom,media=cdrom,model=QM"),
    ("efidisk0", "ssd:vm-300-disk-0,efitype=4m,ms-cert=2023k,pre-enrolled-keys=1,size=4M"),
    ("tpmstate0", "local-lvm:vm-100-disk-1,size=4M,version=v2.0"),
    ("unused255", "local:100/vm-100-disk-9.raw"),
)
VOLUMES = st.from_regex(r"[a-z][a-z0-9]{1,8}:[A-Za-z0-9/._-]{1,20}", fullmatch=True)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "size": st.integers(0, 1 << 60).map(format_size),
        "discard": st.sampled_from(["on", "ignore"]),
        "iothread": st.sampled_from(["0", "1"]),
        "cache": st.sampled_from(["none", "unsafe", "directsync"]),
        "mbps_rd": st.integers(0, 10**9).map(str),
        "serial": st.from_regex(r"[A-Za-z0-9%_.]{1,20}", fullmatch=True),
    },
)


class Keys(SynchronousTestCase):
    def test_bounds(self) -> None:
        for last in ("ide3", "sata5", "scsi30", "virtio15", "efidisk0", "tpmstate0", "unused255"):
            interface = drive_interface(last)
            self.assertTrue(is_drive_key(last))
            self.assertFalse(is_drive_key(f"{interface}{int(last.removeprefix(interface)) + 1}"))
            self.assertFalse(is_drive_key(f"{interface}00"))
        self.assertEqual(len(DRIVE_KEYS), 4 + 6 + 31 + 16 + 1 + 1 + 256)


class Sizes(SynchronousTestCase):
    def test_largest_exact_unit(self) -> None:
        for size_bytes, text in (
            (0, "0T"),
            (1, "1"),
            (1023, "1023"),
            (1024, "1K"),
            (1536, "1536"),
            (1 << 30, "1G"),
            ((1 << 30) + 1024, "1048577K"),
            (5 << 40, "5T"),
        ):
            self.assertEqual(format_size(size_bytes), text)
            self.assertEqual(parse_size(text), size_bytes)

    def test_fractions(self) -> None:
        self.assertEqual(parse_size("1.5G"), 3 << 29)
        self.assertEqual(parse_size("0.3"), 0)

    def test_what_is_no_size(self) -> None:
        for bad in ("", "G", "-1", "1 G", "1g", "1P", "9" * 5000, "1\n"):
            self.assertRaises(FormatError, parse_size, bad)

    @settings(deadline=None, max_examples=100)
    @given(st.integers(0, 1 << 62))
    def test_round_trip(self, size_bytes: int) -> None:
        self.assertEqual(parse_size(format_size(size_bytes)), size_bytes)


class Strings(SynchronousTestCase):
    def test_real_drives_come_back_as_they_were(self) -> None:
        for key, text in REAL:
            self.assertEqual(format_drive(parse_drive(key, text)), text)

    def test_canonical_form(self) -> None:
        for key, sent, written in (
            ("scsi0", "size=1024M,file=local:1,discard=on", "local:1,discard=on,size=1G"),
            ("scsi0", "volume=local:1,backup=no,iothread=on", "local:1,backup=0,iothread=1"),
            ("scsi0", "local:1,bps_rd=1048576,cyls=5,trans=lba", "local:1,mbps_rd=1.000"),
            (
                "scsi0",
                "local:1,iops_rd=1,iops_rd_max=2,iops_rd_length=3",
                "local:1,iops_rd=1,iops_rd_max=2,iops_rd_max_length=3",
            ),
        ):
            self.assertEqual(str(parse_drive(key, sent)), written)

    def test_refused(self) -> None:
        for key, text in (
            ("scsi31", "local:1"),
            ("net0", "local:1"),
            ("scsi0", "discard=on"),
            ("scsi0", "nostorage"),
            ("scsi0", "local:1,foo=1"),
            ("scsi0", "local:1,discard=off"),
            ("scsi0", "local:1,size=big"),
            ("scsi0", "local:1,local:2"),
            ("scsi0", "local:a\x7fb"),
            ("scsi0", "local:1,serial=a b"),
            ("scsi0", "local:1,import-from=local:2"),
            ("scsi0", "local:1,mbps=1,mbps_rd=1"),
            ("scsi0", "local:1,iops=1,iops_wr=1"),
            ("scsi0", "local:1,mbps_max=1"),
            ("scsi0", "local:1,bps=1,mbps=1"),
            ("virtio0", "local:1,ssd=1"),
            ("virtio0", "none,media=cdrom"),
            ("ide2", "local:iso/a.iso,media=cdrom,format=raw"),
            ("ide2", "local:iso/a.iso,media=cdrom,snapshot=1"),
            ("efidisk0", "local:1,discard=on"),
            ("tpmstate0", "local:1,version=2"),
            ("unused0", "/dev/sda"),
            ("unused0", "local:1,size=1G"),
        ):
            self.assertRaises(FormatError, parse_drive, key, text)

    @settings(deadline=None, max_examples=100)
    @given(VOLUMES, OPTIONS)
    def test_round_trip(self, volume: str, options: dict[str, str]) -> None:
        drive = Drive(volume, options)
        self.assertEqual(parse_drive("scsi0", format_drive(drive)), drive)

    @settings(deadline=None, max_examples=100)
    @given(st.sampled_from(["scsi0", "ide2", "efidisk0", "unused1"]), st.text())
    def test_any_text_gives_a_drive_or_a_format_error(self, key: str, text: str) -> None:
        try:
            written = format_drive(parse_drive(key, text))
        except FormatError:
            return
        self.assertEqual(format_drive(parse_drive(key, written)), written)


class Facts(SynchronousTestCase):
    def test_kinds(self) -> None:
        drives = {key: parse_drive(key, text) for key, text in REAL}
        self.assertEqual([key for key, drive in drives.items() if drive.is_cdrom], ["ide2", "ide0", "ide1", "ide3"])
        self.assertEqual([key for key, drive in drives.items() if drive.is_cloudinit], ["ide0"])
        self.assertEqual([key for key, drive in drives.items() if not drive.has_volume], ["ide1", "ide3"])
        self.assertEqual([key for key, drive in drives.items() if drive.is_linked_clone], ["virtio0"])
        self.assertEqual([key for key, drive in drives.items() if drive.allocates], [])

    def test_what_would_allocate(self) -> None:
        for volume in ("local:32", "local:0.5", "local:cloudinit", "32", "cloudinit"):
            self.assertTrue(Drive(volume).allocates)
        for volume in ("local:100/vm-100-disk-0.raw", "lvm:vm-100-disk-0", "none", "/dev/32", "local:100/32"):
            self.assertFalse(Drive(volume).allocates)

    def test_linked_clones(self) -> None:
        self.assertTrue(Drive("local:100/base-100-disk-0.qcow2/101/vm-101-disk-0.qcow2").is_linked_clone)
        self.assertFalse(Drive("local:100/base-100-disk-0.qcow2").is_linked_clone)
        self.assertFalse(Drive("lvm:base-100-disk-0").is_linked_clone)

    def test_sizes(self) -> None:
        drive = parse_drive("scsi0", "local:1,size=1G,format=raw,discard=on")
        self.assertEqual(drive.size_bytes, 1 << 30)
        self.assertIsNone(drive.with_size(None).size_bytes)
        self.assertEqual(str(drive.with_size(4 << 20)), "local:1,discard=on,format=raw,size=4M")
        self.assertEqual(
            str(drive.placed("x:2", format="qcow2", size_bytes=1 << 40)), "x:2,discard=on,format=qcow2,size=1T"
        )
        self.assertEqual(str(drive.placed("x:2", format=None, size_bytes=None)), "x:2,discard=on")


class Sent(SynchronousTestCase):
    def test_golden(self) -> None:
        sent = {"interface": "scsi", "index": 0, "size": 1073741824, "discard": "on"}
        drive = Drive.from_sent(sent)
        placed = drive.placed("local:100/vm-100-disk-0.qcow2", format="qcow2", size_bytes=1 << 30)
        self.assertEqual(str(placed), "local:100/vm-100-disk-0.qcow2,discard=on,format=qcow2,size=1G")

    def test_json_values(self) -> None:
        drive = Drive.from_sent(
            {"size": "4194304", "iothread": True, "ssd": 0, "iops_rd": 10, "mbps": 1.5, "queues": 2.0, "serial": None},
            "local:1",
        )
        self.assertEqual(str(drive), "local:1,iops_rd=10,iothread=1,mbps=1.5,queues=2,size=4M,ssd=0")

    def test_what_is_dropped(self) -> None:
        sent = {"file": "evil:1,x", "volume": "evil:2", "format": ["raw"], "index": 0, "interface": "scsi", "cyls": 5}
        self.assertEqual(Drive.from_sent(sent, "local:1"), Drive("local:1", {}))

    def test_refused(self) -> None:
        for sent, text in (
            ({"evil": 1}, "invalid key 'evil'"),
            ({"ev\nil": 1}, "invalid key 'ev?il'"),
            ({"import-from": "local:1"}, "invalid key 'import-from'"),
            (
                {"size": "lots"},
                "format error\nsize: invalid format - value does not look like a valid disk size: lots\n",
            ),
            ({"discard": ["on"]}, "format error\ndiscard: type check ('string') failed - got ARRAY"),
            ({"serial": {}}, "format error\nserial: type check ('string') failed - got HASH"),
            ({"backup": "x"}, "format error\nbackup: type check ('boolean') failed - got 'x'"),
        ):
            error = self.assertRaises(TunnelError, Drive.from_sent, sent)
            self.assertEqual(error.text, text)

    @settings(deadline=None, max_examples=100)
    @given(
        st.dictionaries(
            st.one_of(st.sampled_from(["size", "discard", "serial", "mbps", "backup", "vendor", "model"]), st.text()),
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())),
        )
    )
    def test_anything_else_is_a_tunnel_error(self, sent: dict[str, object]) -> None:
        try:
            written = str(Drive.from_sent(sent, "local:1"))
        except TunnelError:
            return
        self.assertFalse(set("\n\r\0") & set(written))
        self.assertTrue(written.startswith("local:1"))
