"""Guest configs: files, the canonical form, and the strict reader."""

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.firewall import format_firewall
from mtunnel_tx.pve.guestconf import (
    GuestConfig,
    GuestSection,
    decode_description,
    encode_description,
    format_guest_config,
    parse_guest_config,
    read_sent_config,
)
from mtunnel_tx.pve.guestrules import update_line

GOLDEN = Path(__file__).parent.parent / "golden" / "worker-replies.jsonl"

REAL = """\
#<div>Home%3A 50%25</div>
#
#caf%C3%A9
affinity: 0,5,8-11
agent: 1,fstrim_cloned_disks=1,freeze-fs-on-backup=0,type=virtio
allow-ksm: 0
amd-sev: std,no-debug=1
args: -cpu 'host,+kvm_pv_unhalt' -device vfio,x="y"
audio0: device=ich9-intel-hda,driver=none
balloon: 1024
bios: ovmf
boot: order=scsi0;ide2;net0
cicustom: user=local:snippets/user.yml
cipassword: $5$abc$def
citype: nocloud
ciuser: admin
cores: 4
cpu: host,flags=+aes;-pcid,hidden=1,hv-vendor-id=proxmox,phys-bits=host
cpulimit: 2.5
cpuunits: 1024
efidisk0: ssd:vm-300-disk-0,efitype=4m,pre-enrolled-keys=1,size=4M
hookscript: local:snippets/hook.pl
hostpci0: 0000:86:00,pcie=1,x-vga=1
hostpci1: mapping=gpu0,mdev=nvidia-63
hotplug: disk,network,usb,memory,cpu
hugepages: 1024
ide0: local:300/vm-300-cloudinit.qcow2,media=cdrom,size=4M
ide2: local:iso/debian-13.iso,media=cdrom,size=754M
ipconfig0: gw=192.0.2.1,gw6=2001:db8::1,ip=192.0.2.2/24,ip6=2001:db8::2/64
ipconfig1: ip=dhcp,ip6=auto
keyboard: de
kvm: 1
localtime: 1
machine: pc-q35-9.2+pve1,viommu=intel
memory: 8192
meta: creation-qemu=10.0.2,ctime=1756890694
migrate_downtime: 0.1
name: db-01.example.com
nameserver: 192.0.2.53 2001:db8::53
net0: virtio=BC:24:11:3E:B9:39,bridge=vmbr0,firewall=1,mtu=1,queues=4,rate=10.5,tag=7,trunks=5;7-9
net1: e1000=7A:1A:67:FF:13:53,bridge=vmbr1,link_down=1
numa: 1
numa0: cpus=0-3,hostnodes=0,memory=4096,policy=bind
onboot: 1
ostype: win11
parallel0: /dev/parport0
protection: 1
rng0: source=/dev/urandom,max_bytes=1024,period=1000
runningmachine: pc-i440fx-8.1+pve0.pxe
sata0: local-lvm:vm-300-disk-5,size=32G
scsi0: local-zfs:vm-300-disk-1,discard=on,iothread=1,size=200G,ssd=1
scsihw: virtio-scsi-single
searchdomain: example.com
serial0: socket
shares: 500
smbios1: uuid=8fce9b8d-3e5b-4b1c-9d1a-0a7f1d5e6c7b,manufacturer=UUVNVQ==,base64=1
sockets: 1
spice_enhancements: foldersharing=1,videostreaming=all
sshkeys: ssh-ed25519%20AAAAC3Nza%2B%0A
startdate: 2006-06-17T16:01:21
startup: order=1,up=30,down=60
tablet: 0
tags: prod;web_1
template: 0
tpmstate0: local-lvm:vm-300-disk-2,size=4M,version=v2.0
unused0: local:300/vm-300-disk-9.raw
usb0: host=1-2.3,usb3=1
usb1: spice
usb2: mapping=stick
vcpus: 2
vga: qxl,memory=32
virtio15: /dev/sdb,size=1T
virtiofs0: share,cache=always,direct-io=1
vmgenid: 94309b84-54d9-404c-a15a-5a5b4459fc3a
vmstatestorage: local
watchdog: i6300esb,action=reset
"""

KEYS = st.from_regex(r"[a-z][a-z_-]{0,8}[0-9]{0,2}", fullmatch=True).filter(
    lambda key: key not in {"description", "smp", "cdrom", "numa", "kvm", "acpi", "tdf", "onboot"}
)
LETTERS = st.characters(exclude_characters="\n", exclude_categories=["Cs"])
VALUES = st.text(LETTERS, min_size=1, max_size=20).map(lambda value: value.strip(" \t\r\f\v") or " ")
LINES = st.text(LETTERS, max_size=20)
SECTIONS = st.builds(
    GuestSection,
    options=st.dictionaries(KEYS, VALUES, max_size=4),
    description=st.lists(LINES, max_size=3).map(lambda lines: "".join(f"{line}\n" for line in lines)),
)
NAMES = st.one_of(
    st.just("PENDING"),
    st.from_regex(r"special:[a-z]{1,6}", fullmatch=True),
    st.from_regex(r"[a-zA-Z][a-zA-Z0-9_-]{1,8}", fullmatch=True).filter(lambda name: name.upper() != "PENDING"),
)
CONFIGS = st.builds(
    lambda main, sections: GuestConfig(main.options, main.description, [], sections),
    SECTIONS,
    st.dictionaries(NAMES, SECTIONS, max_size=3),
)


class Files(SynchronousTestCase):
    def test_empty_and_locked(self) -> None:
        self.assertEqual(format_guest_config(GuestConfig()), "")
        self.assertEqual(format_guest_config(GuestConfig({"lock": "create"})), "lock: create\n")
        self.assertEqual(parse_guest_config("").options, {})
        self.assertEqual(parse_guest_config("lock: create\n").lock, "create")
        self.assertIsNone(parse_guest_config("").lock)

    def test_sections(self) -> None:
        text = "#top\nb: 1\na: 2\n[snap2]\nname: x\n#why\n[snap1]\n[special:cloudinit]\nq: 1\n[pending]\ndelete: a\n"
        conf = parse_guest_config(text)
        self.assertEqual(conf.description, "top\n")
        self.assertEqual(conf.snapshots.keys(), {"snap1", "snap2"})
        self.assertEqual(conf.snapshots["snap2"].description, "why\n")
        self.assertEqual(conf.special["cloudinit"].options, {"q": "1"})
        self.assertEqual(conf.pending and conf.pending.options, {"delete": "a"})
        self.assertEqual(
            format_guest_config(conf),
            "#top\na: 2\nb: 1\n\n[PENDING]\ndelete: a\n\n[special:cloudinit]\nq: 1\n\n[snap1]\n"
            "\n[snap2]\n#why\nname: x\n",
        )

    def test_nothing_is_lost(self) -> None:
        text = "a: 1\nzz_new-key9: some value\nwhat is this\nempty:\n\n[odd name!]\nx: 1\nstray\n"
        self.assertEqual(format_guest_config(parse_guest_config(text)), text)

    def test_a_config_that_was_written_is_equal(self) -> None:
        conf = parse_guest_config("what is this\na: 1\n")
        self.assertEqual(format_guest_config(conf), "a: 1\nwhat is this\n")
        self.assertEqual(parse_guest_config(format_guest_config(conf)), conf)

    def test_real_config_is_canonical(self) -> None:
        self.assertEqual(format_guest_config(parse_guest_config(REAL)), REAL)

    def test_old_spellings(self) -> None:
        conf = parse_guest_config("smp: 2\ncdrom: none\nonboot: yes\nkvm: off\nname:   x  \r\nfreeze: perhaps\n")
        self.assertEqual(
            conf.options,
            {"sockets": "2", "ide2": "none,media=cdrom", "onboot": "1", "kvm": "0", "name": "x", "freeze": "perhaps"},
        )
        self.assertEqual(parse_guest_config("sockets: 4\nsmp: 2\n").options, {"sockets": "4"})
        self.assertEqual(parse_guest_config("description: a%0Ab\n#c\n").description, "a\nb\nc\n")

    def test_empty_boot_order_stays(self) -> None:
        self.assertEqual(parse_guest_config("boot: \n").options, {"boot": " "})

    def test_descriptions(self) -> None:
        self.assertEqual(encode_description("a: 50% é\t\x7f"), "a%3A 50%25 %C3%A9%09%7F")
        self.assertEqual(decode_description("a%3A 50%25 %c3%a9"), "a: 50% é")
        self.assertEqual(encode_description(decode_description("%FF%41%C3")), "%FFA%C3")
        self.assertEqual(encode_description("\ud800"), "%3F")

    def test_copies_share_nothing(self) -> None:
        conf = parse_guest_config("a: 1\n[PENDING]\nb: 2\n")
        other = conf.copy()
        other.options["a"] = "2"
        other.sections["PENDING"].options.clear()
        self.assertEqual(format_guest_config(conf), "a: 1\n\n[PENDING]\nb: 2\n")

    @settings(deadline=None, max_examples=100)
    @given(CONFIGS)
    def test_round_trip(self, conf: GuestConfig) -> None:
        self.assertEqual(parse_guest_config(format_guest_config(conf)), conf)

    @settings(deadline=None, max_examples=100)
    @given(st.text())
    def test_any_file_can_be_read_and_is_stable_when_written(self, text: str) -> None:
        written = format_guest_config(parse_guest_config(text))
        self.assertEqual(format_guest_config(parse_guest_config(written)), written)


class Sent(SynchronousTestCase):
    def assert_refused(self, text: str, reason: str) -> None:
        error = self.assertRaises(TunnelError, read_sent_config, text, 100)
        self.assertEqual(error.text, f"vm 100 - {reason}")

    def test_real_config_is_taken(self) -> None:
        conf, warnings = read_sent_config(REAL, 300)
        self.assertEqual(format_guest_config(conf), REAL)
        self.assertEqual(warnings, [])

    def test_golden_session(self) -> None:
        rows = [row for row in map(json.loads, GOLDEN.read_text().splitlines()) if row["session"] == "config ok"]
        request = json.loads(rows[1]["request"])
        conf, _ = read_sent_config(request["conf"], 100)
        self.assertIn(f"\n{update_line(100, conf)}\n", rows[-1]["task_log"])
        unlocked = format_guest_config(conf)
        conf.options["lock"] = "migrate"
        firewall, _ = format_firewall(request["firewall-config"])
        self.assertEqual(format_guest_config(conf) + firewall, rows[2]["out"])
        self.assertEqual((unlocked, firewall), (rows[-1]["config"], rows[-1]["fw"]))

    def test_history_is_dropped(self) -> None:
        conf, _ = read_sent_config(
            "lock: backup\nparent: snap1\ndigest: abc\nname: x\n[PENDING]\nmemory: 1024\ndelete: cores\n"
            "[special:cloudinit]\nname: was\nanything: goes\n[special:fleecing]\nfleecing-images: local:1,local:2\n"
            "[snap1]\nsnaptime: 1\nsnapstate: prepare\nvmstate: local:100/vm-100-state-snap1.raw\n",
            100,
        )
        self.assertEqual(format_guest_config(conf), "name: x\n\n[special:cloudinit]\nanything: goes\nname: was\n")

    def test_unparsable_lines(self) -> None:
        self.assert_refused("name: a\nhmm\nworse", "unable to parse config: hmm")
        self.assert_refused("Name: a", "unable to parse config: Name: a")
        self.assert_refused("name:", "unable to parse config: name:")
        for control in ("\0", "\x1b", "\x85", "\u2028", "\ud800"):
            self.assert_refused(f"ciuser: a{control}b", "unable to parse config: ciuser: a?b")

    def test_unknown_settings(self) -> None:
        for key in ("foo", "scsi31", "net32", "net01", "unused256", "numa8", "usb14", "rng1", "efidisk1"):
            self.assert_refused(f"{key}: 1", f"unable to parse value of '{key}' - unknown setting '{key}'")

    def test_values(self) -> None:
        for line, reason in (
            ("memory: lots", "format error\ncurrent: type check ('integer') failed - got 'lots'"),
            ("memory: 1", "format error\ncurrent: value must have a minimum value of 16"),
            ("name: a b", "value does not look like a valid DNS name"),
            ("cores: x", "type check ('integer') failed - got 'x'"),
            ("onboot: maybe", "type check ('boolean') failed - got 'maybe'"),
            ("cpulimit: much", "type check ('number') failed - got 'much'"),
            ("bios: none", "value 'none' does not have a value in the enumeration 'seabios, ovmf'"),
            ("startup: first", "unable to parse startup options"),
            ("hotplug: tape", "invalid hotplug feature 'tape'"),
            ("tags: a;b/c", "invalid characters in tag"),
            ("nameserver: a b c!", "value does not look like a valid address: c!"),
            ("sshkeys: a b", "invalid urlencoded string: a b"),
            ("affinity: x", "unable to parse cpuset option"),
            ("bootdisk: net0", "invalid boot disk 'net0'"),
            ("hookscript: x", "unable to parse volume ID 'x'"),
            ("vmstatestorage: a!b", "storage ID 'a!b' contains illegal characters"),
            ("boot: order=tape0", "format error\norder: invalid format - invalid boot device 'tape0'\n"),
            ("boot: xyz", "format error\nlegacy: value does not match the regex pattern"),
            ("net0: virtio=BC:24:11:00:00", "format error\nmacaddr: invalid format - value does not look like a valid"
             " unicast MAC address\n"),
            ("net0: bridge=vmbr0", "format error\nmodel: property is missing and it is not optional"),
            ("net0: virtio=BC:24:11:00:00:01,e1000=BC:24:11:00:00:02", "key alias 'model' is already defined"),
            ("ipconfig0: gw=192.0.2.1", "format error\nip: missing property - 'gw' requires this property"),
            ("cpu: host,sun=1", "invalid key in comma-separated list property: sun"),
            ("machine: pc-1", "format error\ntype: value does not match the regex pattern"),
            ("vga: std,memory=1", "format error\nmemory: value must have a minimum value of 4"),
        ):  # fmt: skip
            self.assert_refused(line, f"unable to parse value of '{line.split(':')[0]}' - {reason}")

    def test_a_bad_drive_has_no_reason(self) -> None:
        for line in ("scsi0: x", "ide2: none,media=tape", "unused0: /dev/sda", "scsi0: a1:1,evil=1", "cdrom: none,x=1"):
            self.assert_refused(line, f"unable to parse value of '{line.split(':')[0]}'")

    def test_sections(self) -> None:
        self.assert_refused("[a b]", "skipping unknown section: 'a b'")
        self.assert_refused("[s]\nhmm", "skipping unknown section: 's'")
        self.assert_refused("[special:x]", "skipping unknown section: 'special:x'")
        self.assert_refused("[PENDING]\n[pending]", "duplicate section: pending")
        self.assert_refused("[sn]\n[sn]", "duplicate snapshot section: sn")
        self.assert_refused("[special:cloudinit]\n[special:cloudinit]", "duplicate special section: cloudinit")
        self.assert_refused("[sn]\nfoo: 1", "unable to parse value of 'foo' - unknown setting 'foo'")
        self.assert_refused("delete: a", "property 'delete' is only allowed in [PENDING]")

    def test_values_are_kept_as_proxmox_keeps_them(self) -> None:
        conf, warnings = read_sent_config(
            'onboot: Yes\ncores: 04\nciuser: "x y"\nsmp: 2\ncdrom: none\nargs: "a"\n', 100
        )
        self.assertEqual(
            format_guest_config(conf),
            'args: "a"\nciuser: x y\ncores: 4\nide2: none,media=cdrom\nonboot: 1\nsockets: 2\n',
        )
        self.assertEqual(warnings, [])

    def test_all_that_cannot_be_read_at_once(self):
        found = []
        text = "cores: 1\nnewkey: 1\n?\ntags: \u00e4\n[no section]\nname: -\n[old]\nmemory: 1\n"
        conf, _ = read_sent_config(text, 100, lambda key, error: found.append((key, error.text)))
        self.assertEqual(conf.options, {"cores": "1"})
        self.assertEqual([key for key, _ in found], ["newkey", "", "tags", "", "memory"])
        for (_, text), word in zip(found, ("newkey", "?", "tag", "no section", "memory"), strict=True):
            self.assertTrue(text.startswith("vm 100 - ") and word in text, text)

    def test_warnings_end_somewhere(self) -> None:
        _, warnings = read_sent_config("cores: 1\n" * 1000, 100)
        self.assertEqual((len(warnings), warnings[-1]), (21, "vm 100 - 979 more warnings"))

    def test_lists_end_somewhere(self) -> None:
        read_sent_config("tags: " + "a;" * 1000 + "\n", 100)
        self.assert_refused("tags: " + "a;" * 1001, "unable to parse value of 'tags' - there are 1000 items at most")

    def test_a_key_twice_is_told(self) -> None:
        conf, warnings = read_sent_config("cores: 1\ncores: 2\n", 100)
        self.assertEqual(conf.options, {"cores": "2"})
        self.assertEqual(warnings, ["vm 100 - 'cores' is given twice, the last one counts"])

    def test_descriptions(self) -> None:
        conf, _ = read_sent_config("#a%0Ab\n#\n# \nname: x\n", 100)
        self.assertEqual(format_guest_config(conf), "#a\n#b\nname: x\n")
        self.assertEqual(read_sent_config("#\n#\n", 100)[0], GuestConfig())

    @settings(deadline=None, max_examples=100)
    @given(
        st.one_of(
            st.text(),
            st.lists(
                st.builds("{}: {}".format, st.sampled_from(["scsi0", "net0", "boot", "cpu", "name", "args"]), st.text())
            ).map("\n".join),
        )
    )
    def test_anything_else_is_a_tunnel_error(self, text: str) -> None:
        try:
            conf, _ = read_sent_config(text, 100)
        except TunnelError:
            return
        written = format_guest_config(conf)
        self.assertEqual(read_sent_config(written, 100)[0], conf)

    def test_megabytes_take_no_time(self) -> None:
        for text in ("#\n" * 10**6, "cores: 1\n" * 10**5, f"name: {'a.' * 10**6}!", f"ide0: a1{':vm-1' * 10**5}"):
            try:
                read_sent_config(text, 100)
            except TunnelError:
                continue
