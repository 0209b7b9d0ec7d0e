from __future__ import annotations

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.pve.rights import Rights
from tests.threads import FakeThreads
from tests.tunnel.case import DISK, TunnelCase

VOLID = "local:100/vm-100-disk-0.raw"
FIREWALL = "[OPTIONS]\nenable: 1\n"


class ConfigTests(TunnelCase):
    def setUp(self) -> None:
        super().setUp()
        self.connect()

    def refused(self, conf: str) -> str:
        before = dict(self.fake.guests.configs[100].options)
        text = self.msg(cmd="config", conf=conf)
        self.assertEqual(self.fake.guests.configs[100].options, before)
        return text.removeprefix("failed to handle 'config' command - ")

    def written(self, conf: str) -> dict[str, str]:
        self.assertEqual(self.ask(cmd="config", conf=conf), {"success": True})
        return self.fake.guests.configs[100].options

    def test_written_under_the_next_lock(self) -> None:
        written = self.written("name: test\nmemory: 512\nlock: backup\ndigest: abc\n")
        self.assertEqual(written, {"name": "test", "memory": "512", "lock": "migrate"})
        self.assertIn("update VM 100: -memory 512 -name test", self.task.lines)

    def test_only_once(self) -> None:
        self.written("memory: 512\n")
        self.assertEqual(self.refused("memory: 512\n"), "found lock 'migrate' trying to remove 'create' lock\n")
        self.assertIn("unable to parse config", self.refused("?\n"))

    def test_after_unlock(self) -> None:
        self.ask(cmd="unlock")
        self.assertEqual(self.refused("memory: 512\n"), "VM 100 is already unlocked\n")

    def test_a_refused_config_may_come_again(self) -> None:
        self.assertEqual(
            self.refused("nosuch: 1\n"), "vm 100 - unable to parse value of 'nosuch' - unknown setting 'nosuch'\n"
        )
        self.assertEqual(self.written("memory: 512\n")["lock"], "migrate")

    def test_a_volume_that_many_keys_name_is_asked_for_once(self) -> None:
        asked: list[str] = []
        size_bytes = self.fake.storage.size_bytes

        async def count(volid: str) -> int | None:
            asked.append(volid)
            return await size_bytes(volid)

        volid = self.ask(**DISK)["volid"]
        self.patch(self.fake.storage, "size_bytes", count)
        self.written("".join(f"unused{number}: {volid}\n" for number in range(256)))
        self.assertEqual(asked, [volid])

    def test_snippets_stay_in_their_folder(self) -> None:
        for name in ("snippets/../../etc/shadow", "snippets/..", "iso/a.iso", "100/vm-100-disk-0.raw", "../a"):
            self.assertEqual(
                self.refused(f"cicustom: user=local:{name}\n"), f"cicustom: user: 'local:{name}' is no snippet\n"
            )
        self.assertEqual(self.refused("cicustom: user=nosuch:snippets/a\n"), "storage 'nosuch' does not exist\n")
        self.assertIn("snippets/a", self.written("cicustom: user=local:snippets/a\n")["cicustom"])

    def test_snippets_need_a_right_to_read_them(self) -> None:
        users = self.fake.access.users
        conf = "cicustom: user=local:snippets/a\n"
        for acl in ("acl:1:/vms:mig@pve:PVEVMAdmin:", "acl:1:/storage/other:mig@pve:PVEDatastoreAdmin:"):
            given = f"acl:1:/vms:mig@pve:PVEVMAdmin:\n{acl}"
            self.fake.access.users = users.replace("acl:1:/:mig@pve:Administrator:", given)
            self.assertEqual(self.refused(conf), "missing privileges to access local:snippets/a\n")
        given = "acl:1:/vms:mig@pve:PVEVMAdmin:\nacl:1:/storage/local:mig@pve:PVEDatastoreUser:"
        self.fake.access.users = users.replace("acl:1:/:mig@pve:Administrator:", given)
        self.written(conf)

    def test_what_no_host_has(self) -> None:
        self.assertEqual(self.refused("memory: 99999999\n"), "memory: there are 4194304 MiB at most\n")
        self.assertEqual(self.refused("cores: 64\nsockets: 65\n"), "cores: there are 4096 processors at most\n")

    def test_long_ones(self) -> None:
        """What takes a while is not done where everybody waits, and it ends."""
        most = self.fake.services.limits.config_bytes
        conf = "name: a\n"
        self.assertEqual(
            self.refused("description: " + "é" * (most // 2)), f"vm 100 - config is longer than {most} bytes\n"
        )
        text = self.msg(cmd="config", conf=conf, **{"firewall-config": "[" * (most + 1)})
        self.assertIn(f"vm 100 - firewall config is longer than {most} bytes", text)
        asked: list[str] = []
        run = self.fake.services.threads.run
        self.patch(FakeThreads, "run", lambda _self, call, *args: asked.append(call.__name__) or run(call, *args))
        self.ask(cmd="config", conf=conf, **{"firewall-config": "[RULES]\n"})
        self.assertEqual(asked, ["format_firewall", "read_sent_config", "check_config_privileges"])

    def test_nothing_to_set(self) -> None:
        self.assertEqual(self.refused(""), "no options specified\n")

    def test_drives_get_their_actual_size(self) -> None:
        self.ask(**DISK)
        written = self.written(f"memory: 512\nscsi0: {VOLID},size=5T,discard=on\nide2: none,media=cdrom\n")
        self.assertEqual(written["scsi0"], f"{VOLID},discard=on,size=1G")
        self.assertEqual(written["ide2"], "none,media=cdrom")

    def test_volumes(self) -> None:
        self.fake.storage.sizes["local:101/vm-101-disk-0.raw"] = 1
        for value, text in (
            (VOLID, f"volume '{VOLID}' does not exist\n"),
            ("nosuch:100/vm-100-disk-0.raw", "storage 'nosuch' does not exist\n"),
            ("local:101/vm-101-disk-0.raw", "volume 'local:101/vm-101-disk-0.raw' does not belong to VM 100\n"),
            ("/dev/sda", "Only root can pass arbitrary filesystem paths.\n"),
        ):
            self.assertEqual(self.refused(f"memory: 512\nscsi0: {value}\n"), text)

    def test_bases_of_others(self) -> None:
        for base in ("99/base-99-disk-0.raw", "99/base-100-disk-0.raw", "99/plain.raw"):
            clone = f"local:{base}/100/vm-100-disk-0.qcow2"
            self.fake.storage.sizes[clone] = 1
            self.assertIn("does not belong to VM 100", self.refused(f"memory: 512\nscsi0: {clone}\n"))

    def test_nothing_is_allocated(self) -> None:
        for value in ("local:32", "local:cloudinit"):
            self.assertIn("would make a new volume", self.refused(f"memory: 512\nscsi0: {value}\n"))

    def test_foreign_content_needs_a_right_on_the_storage(self) -> None:
        iso = "local:iso/debian.iso"
        self.fake.storage.sizes[iso] = 2048
        users = self.fake.access.users
        self.fake.access.users = users.replace("acl:1:/:mig@pve:Administrator:", "acl:1:/vms:mig@pve:PVEVMAdmin:")
        text = f"missing privileges to access {iso}\n"
        self.assertEqual(self.refused(f"memory: 512\nide2: {iso},media=cdrom\n"), text)
        self.fake.access.users += "acl:1:/storage/local:mig@pve:PVEDatastoreUser:\n"
        self.assertEqual(self.written(f"memory: 512\nide2: {iso},media=cdrom\n")["ide2"], f"{iso},media=cdrom,size=2K")

    def test_privileges_key_by_key(self) -> None:
        self.assertEqual(self.refused("memory: 512\nargs: -S\n"), "only root can set 'args' config\n")

    def test_a_script_has_to_exist_where_the_token_may_set_one(self) -> None:
        self.patch(Rights, "is_root", True)
        text = "400 Parameter verification failed.\nhookscript: script 'local:snippets/x.pl' does not exist\n\n"
        self.assertEqual(self.refused("memory: 512\nhookscript: local:snippets/x.pl\n"), text)

    def test_links_and_images_that_need_other_files(self) -> None:
        self.ask(**DISK)
        self.fake.storage.references[VOLID] = "volume is a symbolic link"
        text = f"volume '{VOLID}': volume is a symbolic link\n"
        for key in ("scsi0", "unused0"):
            self.assertEqual(self.refused(f"memory: 512\n{key}: {VOLID}\n"), text)
        self.fake.storage.sizes["local:100/vm-100-state-x.raw"] = 1
        self.fake.storage.references["local:100/vm-100-state-x.raw"] = "image has a backing file"
        self.assertIn("image has a backing file", self.refused("memory: 512\nvmstate: local:100/vm-100-state-x.raw\n"))

    def test_what_is_no_disk(self) -> None:
        for name, content in (
            ("snippets/h.pl", "snippets"),
            ("vztmpl/debian.tar.zst", "vztmpl"),
            ("backup/vzdump-qemu-100-2022_11_18-10_00_00.vma", "backup"),
        ):
            self.fake.storage.sizes[f"local:{name}"] = 1
            text = f"volume 'local:{name}' is no disk image, but of content '{content}'\n"
            self.assertEqual(self.refused(f"memory: 512\nscsi0: local:{name}\n"), text)

    def test_firewall_rules_need_a_right(self) -> None:
        role = "role:most:VM.Allocate,VM.Config.Memory,VM.Config.Options:\n"
        users = self.fake.access.users
        self.fake.access.users = users.replace("acl:1:/:mig@pve:Administrator:", f"{role}acl:1:/:mig@pve:most:")
        text = self.msg(cmd="config", conf="memory: 512\n", **{"firewall-config": FIREWALL})
        self.assertEqual(
            text, "failed to handle 'config' command - 403 Permission check failed (/vms/100, VM.Config.Network)\n"
        )
        self.assertEqual(self.fake.guests.firewalls, {})
        self.assertTrue(self.ask(cmd="config", conf="memory: 512\n", **{"firewall-config": "[OPTIONS]\n"})["success"])

    def test_firewall_rules_go_with_a_config_that_fails(self) -> None:
        for conf in ("?\n", "nosuch: 1\n", "", f"memory: 512\nscsi0: {VOLID}\n"):
            self.msg(cmd="config", conf=conf, **{"firewall-config": FIREWALL})
            self.assertEqual(self.fake.guests.firewalls, {})

    def test_firewall_rules_of_before_come_back(self) -> None:
        async def full(*_: object) -> None:
            raise BackendFailed("No space left on device")

        for before in ({}, {100: "[OPTIONS]\n\nenable: 0\n\n"}):
            self.fake.guests.firewalls = dict(before)
            patch = self.patch(self.fake.guests, "write", full)
            self.msg(cmd="config", conf="memory: 512\n", **{"firewall-config": FIREWALL})
            patch.restore()
            self.assertEqual(self.fake.guests.firewalls, before)
        self.assertTrue(self.ask(cmd="config", conf="memory: 512\n", **{"firewall-config": FIREWALL})["success"])
        self.assertIn("enable: 1", self.fake.guests.firewalls[100])

    def test_a_bridge_that_leads_elsewhere(self) -> None:
        for name in (".", ".."):
            text = self.refused(f"memory: 512\nnet0: virtio,bridge={name}\n")
            self.assertIn(f"invalid bridge ID '{name}'", text)

    def test_an_empty_firewall_text_makes_no_file(self) -> None:
        self.fake.guests.firewalls[100] = "[OPTIONS]\n\nenable: 1\n\n"
        self.ask(cmd="config", conf="memory: 512\n", **{"firewall-config": "[OPTIONS]\n"})
        self.assertEqual(self.fake.guests.firewalls, {})

    def test_firewall_is_written_and_remembered(self) -> None:
        text = "[RULES]\nIN ACCEPT\n\n[OPTIONS]\nenable: 1\n"
        self.ask(cmd="config", conf="memory: 512\n", **{"firewall-config": text})
        self.assertEqual(self.fake.guests.firewalls[100], "[OPTIONS]\n\nenable: 1\n\n[RULES]\n\nIN ACCEPT\n\n")
        self.ask(cmd="quit", cleanup=1)
        self.assertEqual(self.fake.guests.firewalls, {})

    def test_dropped_lines_are_warnings(self) -> None:
        self.ask(cmd="config", conf="memory: 512\n", **{"firewall-config": "stray\n"})
        self.line.disconnected()
        self.assertTrue(any(line.startswith("WARN: ") for line in self.task.lines))
