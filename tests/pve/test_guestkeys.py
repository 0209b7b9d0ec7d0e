"""Privileges per key."""

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.guestconf import parse_guest_config
from mtunnel_tx.pve.guestformats import CHECKS
from mtunnel_tx.pve.guestkeys import CONFIG_NEEDS, RULES, check_config_privileges, vlan_bridges
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.users import parse_user_config

TOKEN = "u@pve!t1"
ROOT_ONLY = (
    "affinity amd-sev arch args hookscript hugepages intel-tdx ivshmem keephugepages parallel0 parallel2 snaptime"
    " spice_enhancements"
)
PRIVILEGES = {
    "VM.Config.CPU": "cores: 1|cpu: host|cpulimit: 1|cpuunits: 1|numa: 1|numa7: cpus=0|runningcpu: kvm64|sockets: 1"
    "|vcpus: 1",
    "VM.Config.Memory": "memory: 16|balloon: 0|shares: 1|allow-ksm: 1",
    "VM.Config.HWType": "acpi: 1|hotplug: 0|kvm: 1|machine: q35|runningmachine: q35|scsihw: lsi|smbios1: base64=1"
    "|tablet: 1|vga: std|watchdog: ib700|audio0: device=AC97|rng0: /dev/urandom|serial0: socket|usb0: spice"
    "|usb0: mapping=m1|rng0: /dev/hwrng|hostpci0: mapping=m1",
    "VM.Config.Options": "agent: 1|autostart: 1|bios: ovmf|description: x|keyboard: de|localtime: 1"
    "|migrate_downtime: 1|migrate_speed: 1|name: x|onboot: 1|ostype: l26|protection: 1|reboot: 1|startdate: now"
    "|startup: 1|tdf: 1|template: 1|tags: x",
    "VM.PowerMgmt": "freeze: 1",
    "VM.Config.Disk": "boot: c|bootdisk: ide0|vmstatestorage: local|ide3: a1:1|sata5: a1:1|scsi30: a1:1|virtio15: a1:1"
    "|efidisk0: a1:1|tpmstate0: a1:1|unused255: a1:1|vmstate: a1:1|virtiofs9: m1",
    "VM.Config.CDROM": "ide2: none,media=cdrom|ide2: cdrom,media=cdrom",
    "VM.Config.Cloudinit": "ide2: a1:100/vm-100-cloudinit.raw,media=cdrom",
    "VM.Config.Network": "net31: virtio,bridge=vmbr0|running-nets-host-mtu: net0=1500",
    "VM.Config.Cloudinit|VM.Config.Network": "cicustom: user=a1:1|cipassword: x|citype: nocloud|ciuser: x|ciupgrade: 1"
    "|nameserver: x|searchdomain: x|sshkeys: x|ipconfig31: ip=dhcp",
}
ELSEWHERE = (
    ("startup: 1", "/", "Sys.Modify"),
    ("vmstatestorage: local", "/storage/local", "Datastore.AllocateSpace"),
    ("cpu: custom-m1", "/mapping/cpu/m1", "Mapping.Use"),
    ("rng0: /dev/hwrng", "/mapping/hwrng", "Mapping.Use"),
    ("usb0: mapping=m1", "/mapping/usb/m1", "Mapping.Use"),
    ("usb0: spice,mapping=m1", "/mapping/usb/m1", "Mapping.Use"),
    ("hostpci15: mapping=m1", "/mapping/pci/m1", "Mapping.Use"),
    ("virtiofs0: m1", "/mapping/dir/m1", "Mapping.Use"),
    ("net0: virtio,bridge=vmbr0", "/sdn/zones/localnetwork/vmbr0", "SDN.Use"),
    ("net0: virtio,bridge=vmbr0,tag=5", "/sdn/zones/localnetwork/vmbr0/5", "SDN.Use"),
    ("net0: virtio,bridge=vmbr0,trunks=7-9", "/sdn/zones/localnetwork/vmbr0/7", "SDN.Use"),
    ("ide2: cdrom,media=cdrom", "/", "Sys.Console"),
)


ADMINISTRATOR = Rights(
    parse_user_config("user:u@pve:1:0::::::\ntoken:u@pve!t1:0:0::\nacl:1:/:u@pve:Administrator:\n"), TOKEN
)


def rights_of(*grants: tuple[str, str]) -> Rights:
    """The rights of a token with a role of its own on each path."""
    lines = ["user:u@pve:1:0::::::", "token:u@pve!t1:0:0::"]
    for number, (path, privileges) in enumerate(grants):
        lines += [f"role:r{number}:{privileges}:", f"acl:1:{path}:u@pve:r{number}:"]
    return Rights(parse_user_config("\n".join(lines) + "\n"), TOKEN)


class Keys(SynchronousTestCase):
    def assert_refused(self, line: str, rights: Rights, reason: str) -> None:
        error = self.assertRaises(TunnelError, check_config_privileges, parse_guest_config(line), 100, rights)
        self.assertEqual(error.text, reason)

    def test_each_key_needs_its_privilege(self) -> None:
        nothing = rights_of()
        for privilege, lines in PRIVILEGES.items():
            for line in lines.split("|"):
                self.assert_refused(line, nothing, f"Permission check failed (/vms/100, {privilege})")

    def test_and_nothing_more(self) -> None:
        elsewhere = {line for line, _, _ in ELSEWHERE} | {"net31: virtio,bridge=vmbr0", "virtiofs9: m1"}
        elsewhere |= {"hostpci0: mapping=m1", "vmstate: a1:1"}
        for privilege, lines in PRIVILEGES.items():
            both = "VM.Config.Cloudinit,VM.Config.CDROM"
            rights = rights_of(("/vms/100", both if privilege == "VM.Config.Cloudinit" else privilege.split("|")[-1]))
            for line in set(lines.split("|")) - elsewhere:
                check_config_privileges(parse_guest_config(line), 100, rights)

    def test_privileges_on_other_paths(self) -> None:
        everything = ",".join(sorted({name for names in PRIVILEGES for name in names.split("|")}))
        for line, path, privilege in ELSEWHERE:
            self.assert_refused(line, rights_of(("/vms", everything)), f"Permission check failed ({path}, {privilege})")
            parent = path.rpartition("/")[0] or "/"
            rights = rights_of(("/vms", everything), (parent, privilege))
            check_config_privileges(parse_guest_config(line), 100, rights)

    def test_a_rule_asks_for_nothing_that_it_does_not_list(self) -> None:
        lines = [line for lines in PRIVILEGES.values() for line in lines.split("|")] + [
            line for line, _, _ in ELSEWHERE
        ]
        for line in set(lines) - {"description: x"}:
            key, _, value = line.partition(": ")
            asked = [need for need, _ in RULES[key].asked(key, value)]
            self.assertTrue(asked)
            self.assertLessEqual(set(asked), set(RULES[key].needs), line)

    def test_needs_are_listed_with_their_keys(self) -> None:
        listed = {(need.path, need.privileges): need.when for need in CONFIG_NEEDS}
        self.assertEqual(listed["/mapping/usb/{id}", ("Mapping.Use",)], "for these keys of the config: usb[n]")
        self.assertIn("cores, cpulimit", listed["/vms/{vmid}", ("VM.Config.CPU",)])

    def test_two_privileges(self) -> None:
        self.assert_refused(
            "ide2: a1:cloudinit,media=cdrom",
            rights_of(("/", "VM.Config.Cloudinit")),
            "Permission check failed (/vms/100, VM.Config.CDROM)",
        )
        self.assert_refused(
            "vmstate: a1:1", rights_of(("/", "VM.Config.Disk")), "Permission check failed (/vms/100, VM.PowerMgmt)"
        )

    def test_only_root(self) -> None:
        for key in ROOT_ONLY.split():
            self.assert_refused(f"{key}: 1", ADMINISTRATOR, f"only root can set '{key}' config")
        for line, reason in (
            ("serial0: /dev/ttyS0", "only root can modify 'serial0' config for real devices"),
            ("usb0: 1-2", "only root can set 'usb0' config for real devices"),
            ("usb0: 1-2,mapping=m1", "only root can set 'usb0' config for real devices"),
            ("usb0: usb3=1", "only root can set 'usb0' config for real devices"),
            ("hostpci0: 01:00.0", "only root can set 'hostpci0' config for non-mapped devices"),
            ("hostpci0: pcie=1", "only root can set 'hostpci0' config for non-mapped devices"),
        ):
            self.assert_refused(line, ADMINISTRATOR, reason)

    def test_every_known_key_is_free_or_checked(self) -> None:
        nothing = rights_of()
        free = set()
        for key in CHECKS:
            try:
                check_config_privileges(parse_guest_config(f"{key}: ?"), 100, nothing)
                free.add(key)
            except TunnelError:
                continue
        self.assertEqual(free, {"vmgenid", "meta", "lock", "parent", "digest", "snapstate"})

    def test_root_may_set_all(self) -> None:
        root = Rights(parse_user_config(""), "root@pam")
        check_config_privileges(parse_guest_config("args: x\nserial0: /dev/ttyS0\n"), 100, root)
        token = Rights(parse_user_config("token:root@pam!t1:0:0::\n"), "root@pam!t1")
        self.assert_refused("args: x", token, "only root can set 'args' config")

    def test_a_value_that_cannot_be_read(self) -> None:
        for key in ("scsi0", "net0", "usb0", "hostpci0", "virtiofs0", "rng0", "cpu"):
            self.assert_refused(f"{key}: ?,?", ADMINISTRATOR, f"unable to parse value of '{key}'")


class Bridges(SynchronousTestCase):
    def test_vlans(self) -> None:
        for nic, paths in (
            ({}, []),
            ({"bridge": "b1"}, ["b1"]),
            ({"bridge": "b1", "tag": "5", "trunks": "7;9-10;10"}, [f"b1/{vlan}" for vlan in (5, 7, 9, 10)]),
            ({"bridge": "b1", "trunks": "3-2"}, ["b1/2", "b1/3"]),
            ({"bridge": "b1", "trunks": "5000"}, ["b1/4095"]),
        ):
            self.assertEqual(vlan_bridges(nic), paths)

    def test_many_wide_trunks_take_no_time(self) -> None:
        self.assertEqual(len(vlan_bridges({"bridge": "b1", "trunks": ";".join(["1-4094"] * 10**5)})), 4094)
