"""What guests are told by a cloud-init drive."""

import json

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.cloudinit import cloud_drives, read_seed, seed_files
from mtunnel_tx.pve.guestconf import parse_guest_config

FULL = """name: web
ciuser: me
cipassword: $5$salt$hash
sshkeys: ssh-ed25519%20AAAA%20me%40here%0Assh-rsa%20BBBB%0A
searchdomain: example.org
nameserver: 192.0.2.53 2001:db8::53
net0: virtio=02:00:00:00:00:0A,bridge=br0
ipconfig0: ip=192.0.2.7/24,gw=192.0.2.1,ip6=auto
net3: virtio=02:00:00:00:00:0B
ipconfig3: ip6=2001:db8::7/64,gw6=2001:db8::1
"""


def seed(text):
    return read_seed(parse_guest_config(text), 100)


def files(text, **snippets):
    return seed_files(seed(text), snippets)


class NoCloud(SynchronousTestCase):
    def user(self, text):
        first, _, rest = files(text)["user-data"].partition("\n")
        self.assertEqual(first, "#cloud-config")
        return json.loads(rest)

    def test_user(self):
        user = self.user(FULL)
        self.assertEqual((user["hostname"], user["fqdn"], user["user"]), ("web", "web.example.org", "me"))
        self.assertEqual(user["password"], "$5$salt$hash")
        self.assertEqual(user["ssh_authorized_keys"], ["ssh-ed25519 AAAA me@here", "ssh-rsa BBBB"])
        self.assertIs(user["package_upgrade"], True)
        self.assertNotIn("disable_root", user)

    def test_almost_nothing(self):
        user = self.user("ciupgrade: 0\nciuser: root\n")
        self.assertEqual((user["hostname"], user["fqdn"]), ("VM100", "VM100"))
        self.assertIs(user["package_upgrade"], False)
        self.assertIs(user["disable_root"], False)
        self.assertNotIn("password", user)

    def test_a_value_stays_a_value(self):
        user = self.user('ciuser: a\ncipassword: x, "runcmd": ["reboot"]\n')
        self.assertEqual(user["password"], 'x, "runcmd": ["reboot"]')
        self.assertNotIn("runcmd", user)

    def test_network(self):
        network = json.loads(files(FULL)["network-config"])
        first, second, dns = network["config"]
        self.assertEqual((first["name"], first["mac_address"]), ("eth0", "02:00:00:00:00:0a"))
        self.assertEqual(
            first["subnets"],
            [{"type": "static", "address": "192.0.2.7/24", "gateway": "192.0.2.1"}, {"type": "ipv6_slaac"}],
        )
        self.assertEqual(second["name"], "eth3")
        self.assertEqual(
            second["subnets"], [{"type": "static6", "address": "2001:db8::7/64", "gateway": "2001:db8::1"}]
        )
        self.assertEqual(
            dns, {"type": "nameserver", "address": ["192.0.2.53", "2001:db8::53"], "search": ["example.org"]}
        )

    def test_without_addresses_it_is_dhcp(self):
        network = json.loads(files("net0: virtio=02:00:00:00:00:0A\n")["network-config"])
        self.assertEqual(network["config"][0]["subnets"], [{"type": "dhcp4"}])

    def test_the_instance_changes_with_what_is_told(self):
        ids = {json.loads(files(f"ciuser: {name}\n")["meta-data"])["instance-id"] for name in ("a", "b", "a")}
        self.assertEqual(len(ids), 2)

    def test_snippets_take_the_place_of_parts(self):
        text = "cicustom: user=local:snippets/u.yml,vendor=local:snippets/v.yml\n"
        self.assertEqual(dict(seed(text).custom), {"user": "local:snippets/u.yml", "vendor": "local:snippets/v.yml"})
        made = files(text, user="#cloud-config\n{}\n", vendor="v")
        self.assertEqual((made["user-data"], made["vendor-data"]), ("#cloud-config\n{}\n", "v"))


class ConfigDrive(SynchronousTestCase):
    def test_windows_has_it_by_default(self):
        self.assertEqual(seed("ostype: win11\n").kind, "configdrive2")
        self.assertEqual((seed("").label, seed("citype: configdrive2\n").label), ("cidata", "config-2"))

    def test_files(self):
        made = files(FULL + "citype: configdrive2\n")
        meta = json.loads(made["openstack/latest/meta_data.json"])
        self.assertEqual(meta["network_config"], {"content_path": "/content/0000"})
        self.assertEqual((meta["hostname"], meta["admin_pass"]), ("web", "$5$salt$hash"))
        self.assertEqual(list(meta["public_keys"].values()), ["ssh-ed25519 AAAA me@here", "ssh-rsa BBBB"])
        lines = [line.strip() for line in made["openstack/content/0000"].splitlines()]
        for line in (
            "iface eth0 inet static",
            "address 192.0.2.7",
            "netmask 255.255.255.0",
            "gateway 192.0.2.1",
            "iface eth0 inet6 auto",
            "netmask 64",
            "dns-nameservers 192.0.2.53 2001:db8::53",
            "dns-search example.org",
        ):
            self.assertIn(line, lines)


class Refused(SynchronousTestCase):
    def test_what_does_not_fit(self):
        for text, start in (
            ("citype: opennebula\n", "citype: 'opennebula' cannot be made here"),
            ("net0: virtio=02:00:00:00:00:0A\nipconfig0: ip=x\n", "ipconfig0: "),
            ("cicustom: user=local:snippets/../../etc/shadow\n", "cicustom: "),
            ("cicustom: nobody=local:snippets/a\n", "cicustom: "),
            ("sshkeys: a b\n", "sshkeys: "),
        ):
            with self.assertRaises(TunnelError, msg=text) as caught:
                seed(text)
            self.assertTrue(caught.exception.text.startswith(start), caught.exception.text)

    def test_drives(self):
        conf = parse_guest_config(
            "ide2: local:100/vm-100-cloudinit.qcow2,media=cdrom\nscsi0: local:100/a.raw\n"
            "unused0: local:100/vm-100-cloudinit.raw\n"
        )
        self.assertEqual(cloud_drives(conf), ["ide2"])
