from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.pve.guestconf import parse_guest_config
from mtunnel_tx.source.rewriting import find_bridges, rewrite_config, sent_firewall

CONF = """#a note
boot: order=scsi0;net0
ide2: none,media=cdrom
lock: migrate
name: web
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1
net1: e1000=BC:24:11:00:00:02
scsi0: local:100/vm-100-disk-0.raw,discard=on,iothread=1,size=1G
unused0: local:100/vm-100-disk-1.qcow2
vmgenid: 11111111-1111-1111-1111-111111111111
vmstatestorage: local

[special:cloudinit]
name: web
"""
SENT = """#a note
boot: order=scsi0;net0
ide2: none,media=cdrom
name: web
net0: virtio=BC:24:11:00:00:01,bridge=vmbr9,firewall=1
net1: e1000=BC:24:11:00:00:02
scsi0: tank:300/vm-300-disk-5.raw,discard=on,iothread=1,size=1G
unused0: tank:300/vm-300-disk-6.qcow2
vmgenid: 11111111-1111-1111-1111-111111111111
vmstatestorage: tank

[special:cloudinit]
name: web
"""


class RewritingTest(SynchronousTestCase):
    def test_only_names_change(self):
        conf = parse_guest_config(CONF)
        volids = {
            "local:100/vm-100-disk-0.raw": "tank:300/vm-300-disk-5.raw",
            "local:100/vm-100-disk-1.qcow2": "tank:300/vm-300-disk-6.qcow2",
        }
        sent = rewrite_config(conf, volids, {"vmbr0": "vmbr9"}.__getitem__, {"local": "tank"}.__getitem__)
        self.assertEqual(sent, SENT)
        self.assertEqual(conf, parse_guest_config(CONF))

    def test_an_image_of_another_format(self):
        """What its volume says counts."""
        drive = "local:100/vm-100-disk-0.{0},discard=on,format={0}"
        conf = parse_guest_config("".join(f"scsi{n}: {drive.format(f)}\n" for n, f in enumerate(("raw", "qcow2"))))
        volids = {"local:100/vm-100-disk-0.raw": "thin:vm-300-disk-0", "local:100/vm-100-disk-0.qcow2": "t:300/a.raw"}
        sent = rewrite_config(conf, volids, str, str)
        self.assertEqual(sent, "scsi0: thin:vm-300-disk-0,discard=on,format=raw\nscsi1: t:300/a.raw,discard=on\n")

    def test_a_drive_that_cannot_be_read(self):
        """It is refused by whoever reads it, and a look at both sides has to come to its end."""
        text = "scsi0: local:100/vm-100-disk-0.raw,cache=often\nscsi1: local:100/vm-100-disk-1.raw,new=1\n"
        self.assertEqual(rewrite_config(parse_guest_config(text), {}, str, str), text)

    def test_firewall_rules(self):
        """No byte is lost, and every one can be sent."""
        read = b"IN DROP # caf\xe9 \xff\x80 caf\xc3\xa9\n".decode("utf-8", "surrogateescape")
        self.assertEqual(sent_firewall(read), "IN DROP # caf\u00e9 \u00ff\u0080 caf\u00e9\n")
        self.assertIsNone(sent_firewall(None))

    def test_bridges(self):
        conf = parse_guest_config("net0: virtio,bridge=b\nnet1: virtio,bridge=a\nnet2: virtio,bridge=b\nnet3: virtio\n")
        self.assertEqual(list(find_bridges(conf)), ["b", "a"])
