"""Every command's parameters, in both dialects; the calls of the HTTP API."""

import json

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import InvalidParameters
from mtunnel_tx.wire import args
from mtunnel_tx.wire.requests import MTUNNEL, WEBSOCKET, MtunnelCall, WebsocketCall
from mtunnel_tx.wire.schema import MISSING, UNDEFINED

NOT_TEXT = "type check ('string') failed - got JSON::PP::Boolean"


class ReaderCase(SynchronousTestCase):
    def assert_errors(self, read, sent, **errors):
        found = self.assertRaises(InvalidParameters, read, sent).errors
        self.assertEqual(found, {name.replace("__", "."): reason for name, reason in errors.items()})


class SmallCommandTests(ReaderCase):
    def test_without_a_schema(self):
        self.assertEqual(args.ANYTHING.read({"foo": [1]}), args.NoArgs())

    def test_query_is_closed(self):
        self.assertEqual(args.NOTHING.read({}), args.NoArgs())
        self.assert_errors(args.NOTHING.read, {"foo": None}, foo=UNDEFINED)

    def test_config(self):
        self.assertEqual(args.CONFIG.read({"conf": "a: 1\n"}), args.ConfigArgs("a: 1\n", None))
        with_firewall = {"conf": 5, "firewall-config": ""}
        self.assertEqual(args.CONFIG.read(with_firewall), args.ConfigArgs("5", ""))
        self.assertEqual(args.CONFIG.read({"conf": "", "firewall-config": None}), args.ConfigArgs("", None))
        found = self.assertRaises(InvalidParameters, args.CONFIG.read, {"firewall_config": "x", "firewall-config": []})
        self.assertEqual(
            found.errors,
            {
                "conf": MISSING,
                "firewall_config": UNDEFINED,
                "firewall-config": "type check ('string') failed - got ARRAY",
            },
        )

    def test_disk(self):
        sent = {"storage": "local", "drive": {"size": 5, "x": None}, "format": None}
        self.assertEqual(args.DISK.read(sent), args.DiskArgs(**sent))
        self.assert_errors(
            args.DISK.read,
            {"storage": "storage!", "drive": "x", "format": "RAW"},
            storage="invalid format - storage ID 'storage!' contains illegal characters\n",
            drive="type check ('object') failed",
            format="value 'RAW' does not have a value in the enumeration 'raw, qcow, qed, qcow2, vmdk, cloop'",
        )
        self.assert_errors(args.DISK.read, {}, storage=MISSING, drive=MISSING)

    def test_ticket(self):
        self.assertEqual(args.TICKET.read({"path": 5}), args.TicketArgs("5"))
        self.assert_errors(args.TICKET.read, {"path": False}, path=NOT_TEXT)

    def test_quit(self):
        self.assertEqual(args.QUIT.read({}), args.QuitArgs(False))
        self.assertEqual(args.QUIT.read({"cleanup": "1"}), args.QuitArgs(True))
        self.assertEqual(args.QUIT.read({"cleanup": True}), args.QuitArgs(True))
        self.assert_errors(args.QUIT.read, {"cleanup": ""}, cleanup="type check ('boolean') failed - got ''")
        self.assert_errors(args.QUIT.read, {"cleanup": "maybe"}, cleanup="type check ('boolean') failed - got 'maybe'")


class BandwidthTests(ReaderCase):
    def test_released(self):
        read = args.BANDWIDTH.read({"storages": ["a", None, 5, True], "bwlimit": "100"})
        expected = args.BandwidthArgs(storages=("a", None, "5", "1"), bwlimit="100", operation="migration")
        self.assertEqual(read, expected)

    def test_the_limit_keeps_its_type(self):
        for sent in (100, "100", 0, "0", None):
            read = args.BANDWIDTH.read({"storages": [], "bwlimit": sent})
            self.assertEqual((read.bwlimit, type(read.bwlimit)), (sent, type(sent)))
        self.assertEqual(json.dumps(args.BANDWIDTH.read({"storages": [], "bwlimit": 5}).bwlimit), "5")

    def test_first_dialect(self):
        self.assertEqual(args.BANDWIDTH.read({"storage": "local", "operation": "restore"}).storages, ("local",))
        self.assertEqual(args.BANDWIDTH.read({"storage": "local", "storages": None}).storages, ("local",))
        self.assert_errors(args.BANDWIDTH.read, {"storage": True}, storage=NOT_TEXT)

    def test_errors(self):
        self.assert_errors(
            args.BANDWIDTH.read, {"storage": "a", "storages": ["a"]}, storage="cannot be given together with 'storages'"
        )
        self.assert_errors(args.BANDWIDTH.read, {}, storages=MISSING)
        self.assert_errors(
            args.BANDWIDTH.read,
            {"storages": "a", "bwlimit": -1, "operation": []},
            storages="type check ('array') failed",
            bwlimit="value must have a minimum value of 0",
            operation="type check ('string') failed - got ARRAY",
        )
        self.assert_errors(
            args.BANDWIDTH.read, {"storages": [], "bwlimit": 1.5}, bwlimit="type check ('integer') failed - got '1.5'"
        )


class DiskImportTests(ReaderCase):
    SENT = {"volname": "vm-1-disk-0.raw", "format": "raw", "storage": "local"}

    def test_released(self):
        sent = {**self.SENT, "export_formats": "raw+size,tar+size", "with_snapshots": 1, "allow_rename": "1"}
        sent |= {"snapshot": "__migration__", "migration_snapshot": True}
        self.assertEqual(
            args.DISK_IMPORT.read(sent),
            args.ImportArgs(
                volname="vm-1-disk-0.raw",
                format="raw",
                export_formats=("raw+size", "tar+size"),
                storage="local",
                snapshot="__migration__",
                migration_snapshot=True,
                with_snapshots=True,
                allow_rename=True,
                convert=False,
            ),
        )

    def test_first_dialect(self):
        sent = {**self.SENT, "export-formats": "raw+size", "with-snapshots": 0, "allow-rename": 1}
        read = args.DISK_IMPORT.read(sent)
        self.assertEqual((read.export_formats, read.with_snapshots, read.allow_rename), (("raw+size",), False, True))
        self.assertEqual((read.snapshot, read.migration_snapshot), (None, False))

    def test_empty_is_false(self):
        keys = ["migration_snapshot", "with_snapshots", "allow_rename"]
        read = args.DISK_IMPORT.read({**self.SENT, "export_formats": "raw+size", **dict.fromkeys(keys, "")})
        self.assertEqual([getattr(read, key) for key in keys], [False] * 3)
        read = args.DISK_IMPORT.read({**self.SENT, "export_formats": "", "with-snapshots": "", "allow-rename": ""})
        self.assertEqual((read.export_formats, read.with_snapshots, read.allow_rename), ((), False, False))

    def test_both_dialects_at_once(self):
        for name, value in (("export_formats", "raw+size"), ("with_snapshots", 0), ("allow_rename", 1)):
            sent = {**self.SENT, "export_formats": "raw+size", name: value, name.replace("_", "-"): value}
            found = self.assertRaises(InvalidParameters, args.DISK_IMPORT.read, sent).errors
            self.assertEqual(list(found), [name.replace("_", "-")])

    def test_only_three_have_dashes(self):
        sent = {**self.SENT, "export_formats": "raw+size", "migration-snapshot": 1}
        self.assertEqual(
            self.assertRaises(InvalidParameters, args.DISK_IMPORT.read, sent).errors, {"migration-snapshot": UNDEFINED}
        )

    def test_errors(self):
        self.assert_errors(
            args.DISK_IMPORT.read,
            {
                "format": "qcow",
                "export_formats": ["raw+size"],
                "snapshot": "a\n",
                "storage": "",
                "with_snapshots": "no",
            },
            volname=MISSING,
            format="value 'qcow' does not have a value in the enumeration 'raw, qcow2, subvol, vmdk'",
            export_formats="type check ('string') failed - got ARRAY",
            snapshot="value does not match the regex pattern",
            storage="invalid format - storage ID '' contains illegal characters\n",
            with_snapshots="type check ('boolean') failed - got 'no'",
        )

    def test_snapshot_names(self):
        for name, fits in (("A-b_9", True), ("x" * 40, True), ("x" * 41, False), ("", False), ("a.b", False)):
            sent = {**self.SENT, "export_formats": "raw+size", "snapshot": name}
            if fits:
                self.assertEqual(args.DISK_IMPORT.read(sent).snapshot, name)
            else:
                self.assertRaises(InvalidParameters, args.DISK_IMPORT.read, sent)


class StartTests(ReaderCase):
    PARAMS = {"statefile": "unix"}
    OPTIONS = {"type": "websocket", "migratedfrom": "src", "remote_node": "src"}

    def read(self, params=None, options=None):
        return args.START.read(
            {
                "start_params": {**self.PARAMS, **(params or {})},
                "migrate_opts": {**self.OPTIONS, **(options or {})},
            }
        )

    def errors(self, params=None, options=None):
        return self.assertRaises(InvalidParameters, self.read, params, options).errors

    def test_least(self):
        start = self.read()
        self.assertEqual(
            start.params,
            args.StartParams(statefile="unix", forcemachine=None, forcecpu=None, skiplock=False, nets_host_mtu=None),
        )
        self.assertEqual((start.options.nbd, start.options.nbd_proto_version), (None, None))

    def test_most(self):
        params = {
            "forcemachine": "pc-i440fx-9.2+pve1",
            "forcecpu": None,
            "skiplock": 1,
            "nets-host-mtu": "net0=1500,net1=9000",
        }
        options = {
            "spice_ticket": "00ffAA",
            "network": "10.0.0.0/24",
            "storagemap": {"a": "b"},
            "nbd_proto_version": "1",
            "nbd": {},
            "postcopy": 1,
        }
        start = self.read(params, options)
        self.assertEqual(start.params.nets_host_mtu, "net0=1500,net1=9000")
        self.assertIs(start.params.skiplock, True)
        self.assertEqual(
            start.options,
            args.MigrateOptions(
                type="websocket",
                migratedfrom="src",
                remote_node="src",
                spice_ticket="00ffAA",
                network="10.0.0.0/24",
                storagemap={"a": "b"},
                nbd_proto_version=1,
                nbd={},
                postcopy=True,
            ),
        )

    def test_nothing_given(self):
        self.assert_errors(args.START.read, {}, start_params=MISSING, migrate_opts=MISSING)
        self.assert_errors(
            args.START.read,
            {"start_params": {}, "migrate_opts": [], "startparams": 1},
            start_params__statefile=MISSING,
            migrate_opts="type check ('object') failed",
            startparams=UNDEFINED,
        )

    def test_nested_reasons(self):
        self.assertEqual(
            self.errors({"statefile": "tcp", "foo": None}, {"type": "insecure", "network": "10.0.0.1", "nbd-x": 1}),
            {
                "start_params.statefile": "value 'tcp' does not have a value in the enumeration 'unix'",
                "start_params.foo": UNDEFINED,
                "migrate_opts.type": "value 'insecure' does not have a value in the enumeration 'websocket'",
                "migrate_opts.network": "invalid format - value does not look like a valid CIDR network\n",
                "migrate_opts.nbd-x": UNDEFINED,
            },
        )

    def test_machines(self):
        good = "pc q35 virt virt-9.2+pve1 pc-9.2 pc-i440fx-7.1 pc-i440fx-7.1+pve0 pc-i440fx-2.6.1.pxe"
        for machine in [*good.split(), "pc-i440fx-9.2+pve1.pxe", "pc-q35-10.0+pve1"]:
            self.assertEqual(self.read({"forcemachine": machine}).params.forcemachine, machine)
        for machine in (
            "",
            "pc\n",
            "pc-i440fx",
            "q35-9.2",
            "virt-9",
            "pc,accel=tcg",
            "microvm",
            "pc-q35-9.2+pve",
            "pc-i440fx-\u0669.2",
        ):
            self.assertEqual(
                self.errors({"forcemachine": machine}),
                {"start_params.forcemachine": "value does not match the regex pattern"},
            )
        self.assertEqual(
            self.errors({"forcemachine": "pc-i440fx-" + "1." * 15 + "1"}),
            {"start_params.forcemachine": "value may only be 40 characters long"},
        )

    def test_texts_for_the_command_line(self):
        for cpu in ("host", "kvm64,+aes,vendor=x", "EPYC-v4", "x,hv_vendor_id=a:b"):
            self.assertEqual(self.read({"forcecpu": cpu}).params.forcecpu, cpu)
        for cpu in ("", "-device", "a b", "host\n", "a/b"):
            self.assertEqual(list(self.errors({"forcecpu": cpu})), ["start_params.forcecpu"])
        for mtus in ("net0", "-x", "net0=1500\n", "net0=1500,", "eth0=1"):
            self.assertEqual(list(self.errors({"nets-host-mtu": mtus})), ["start_params.nets-host-mtu"])
        self.assertIsNone(self.read({"nets-host-mtu": ""}).params.nets_host_mtu)
        for ticket in ("", "xyz", "ab\n"):
            self.assertEqual(list(self.errors(None, {"spice_ticket": ticket})), ["migrate_opts.spice_ticket"])
        for node in ("", "-a", "a.b", "a\n", "../x"):
            self.assertEqual(list(self.errors(None, {"migratedfrom": node})), ["migrate_opts.migratedfrom"])
        self.assertEqual(list(self.errors(None, {"nbd_proto_version": 0})), ["migrate_opts.nbd_proto_version"])


class CallTests(ReaderCase):
    def test_mtunnel(self):
        read = MTUNNEL.read({"node": "n1", "vmid": "300", "storages": "local,zfs;a1", "bridges": ""})
        self.assertEqual(read, MtunnelCall(node="n1", vmid=300, storages=("local", "zfs", "a1"), bridges=()))
        self.assertEqual(MTUNNEL.read({"node": "n1", "vmid": 300}).storages, ())

    def test_mtunnel_errors(self):
        sent = {"node": "n!", "vmid": "abc", "storages": "ok,storage!", "bridges": "bridge!", "foo": "1"}
        self.assertEqual(
            self.assertRaises(InvalidParameters, MTUNNEL.read, sent).errors,
            {
                "node": "invalid format - value does not look like a valid node name\n",
                "vmid": "type check ('integer') failed - got 'abc'",
                "storages": "invalid format - storage ID 'storage!' contains illegal characters\n",
                "bridges": "invalid format - invalid bridge ID 'bridge!'\n",
                "foo": UNDEFINED,
            },
        )
        for number in ("99", "1234567890"):
            self.assertEqual(
                self.assertRaises(InvalidParameters, MTUNNEL.read, {"node": "n", "vmid": number}).errors,
                {"vmid": "invalid format - value does not look like a valid VM ID\n"},
            )

    def test_websocket(self):
        sent = {"node": "n1", "vmid": "300", "socket": "/run/qemu-server/300.mtunnel", "ticket": "secret"}
        read = WEBSOCKET.read(sent)
        self.assertEqual(read, WebsocketCall(node="n1", vmid=300, socket=sent["socket"], ticket="secret"))
        self.assertNotIn("secret", repr(read))
        self.assertEqual(
            self.assertRaises(InvalidParameters, WEBSOCKET.read, {"node": "n1", "vmid": "300"}).errors,
            {"socket": MISSING, "ticket": MISSING},
        )
