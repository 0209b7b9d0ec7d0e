"""Opening a tunnel by HTTP, and who may."""

import json

from jsonschema import Draft202012Validator
from twisted.internet.defer import Deferred

from mtunnel_tx import __version__
from mtunnel_tx.errors import InvalidParameters, PermissionDenied, TunnelError
from mtunnel_tx.http.gate import MOST_DELAYED
from mtunnel_tx.http.table import OPERATIONS
from tests.http.apicase import NODE, SECRET, ApiCase

UNDEFINED = "property is not defined in schema and the schema does not allow additional properties"
CONFLICT = "duplicate parameter (already defined in URI) with conflicting values!"


class OpenTests(ApiCase):
    def test_opens_a_tunnel(self):
        response = self.post(body=b"storages=a1%2Cb1&bridges=vmbr0")
        self.assertEqual(response.line, "HTTP/1.1 200 OK")
        expected = {"upid": "UPID:x:", "ticket": "PVETUNNEL:x", "socket": "/run/qemu-server/300.mtunnel"}
        self.assertEqual(response.json, {"data": expected})
        self.assertEqual(self.tunnels.opened, [(300, "mig@pve!t1", ("a1", "b1"), ("vmbr0",))])

    def late(self, **fields):
        body = json.dumps({"upid": "UPID:x:", **fields}).encode()
        headers = ["Content-Type: application/json"]
        return self.ask("POST", "/nodes/localhost/qemu/300/mtunnellate", headers=headers, body=body)

    def test_a_source_that_comes_late(self):
        expected = {"verdict": "held", "machine": "paused", "whole": 1, "given-up": 0}
        self.assertEqual(self.late().data, expected)
        for decision in ("run", "keep", "discard"):
            self.assertEqual(self.late(decision=decision).data["verdict"], f"{decision} by mig@pve!t1")
        self.assertIn(" 500 VM 300 has no such tunnel of yours", self.late(upid="UPID:y:").line)
        self.assertIn(" 400 ", self.late(decision="burn").line)

    def opened(self, body, **more):
        self.post(body=body, **more)
        return self.tunnels.opened[-1]

    def test_headers(self):
        headers = self.post().headers
        self.assertEqual(headers["content-type"], "application/json;charset=UTF-8")
        self.assertEqual((headers["cache-control"], headers["pragma"]), ("max-age=0", "no-cache"))
        self.assertEqual(headers["server"], f"mtunnel-tx/{__version__}")

    def test_lists(self):
        self.assertEqual(self.opened(b"storages=a1,b1&bridges=x,y"), (300, "mig@pve!t1", ("a1", "b1"), ("x", "y")))
        self.assertEqual(self.opened(b"storages=&bridges=")[2:], ((), ()))
        self.assertEqual(self.opened(b"")[2:], ((), ()))
        self.assertEqual(self.opened(b"storages=a1&storages=b1")[2], ("a1", "b1"))

    def test_content_types(self):
        form, data = b"storages=local", json.dumps({"storages": "local", "bridges": None}).encode()
        typed = "Content-Type: {}".format
        self.assertEqual(self.opened(form)[2], ("local",))
        self.assertEqual(
            self.opened(form, headers=[typed("application/x-www-form-urlencoded; charset=x")])[2], ("local",)
        )
        self.assertEqual(self.opened(data, headers=[typed("application/json;charset=UTF-8")])[2], ("local",))
        response = self.post(body=form, headers=[typed("text/plain")])
        self.assertEqual(response.line, "HTTP/1.1 506 upload 'Content-Type 'text/plain' not implemented")
        self.assertTrue(self.post(body=b"", headers=[typed("text/plain")]).line.startswith("HTTP/1.1 200"))

    def test_bad_json(self):
        for body in (
            b"{",
            b"[]",
            b'"x"',
            b"\xff",
            b"[" * 100_000,
            b"1" * 5000,
            b'{"a": NaN}',
            '{"a": 1}'.encode("utf-16"),
        ):
            response = self.post(body=body, headers=["Content-Type: application/json"])
            self.assertTrue(response.line.startswith("HTTP/1.1 500 unable to decode JSON"), response.line)

    def test_values_of_the_wrong_type(self):
        def complaint(value):
            body = json.dumps({"storages": value}).encode()
            return self.post(body=body, headers=["Content-Type: application/json"]).json["errors"]["storages"]

        self.assertEqual(complaint(["a"]), "type check ('string') failed - got ARRAY")
        self.assertEqual(complaint({}), "type check ('string') failed - got HASH")
        self.assertEqual(complaint(True), "type check ('string') failed - got JSON::PP::Boolean")

    def test_the_local_name_is_a_node_too(self):
        self.assertEqual(self.post(node=NODE).line, "HTTP/1.1 200 OK")

    def test_another_node(self):
        reason = f"node needs to be 'localhost' or local hostname '{NODE}'"
        self.assert_parameters(self.post(node="other"), node=reason)

    def test_privileges(self):
        denied = "Permission check failed (/vms/101, VM.Allocate)"
        self.assert_error(self.post("101", token="poor"), f"403 {denied}", denied + "\n")
        self.assert_error(self.post("300", token="poor"), "403 Permission check failed (/, Sys.Incoming)")

    def test_privileges_come_before_the_schema(self):
        self.assertEqual(self.post("101", b"foo=1", token="poor").line[9:12], "403")

    def test_the_schema_comes_before_the_node(self):
        self.assert_parameters(self.post("300", b"foo=1", node="other"), foo=UNDEFINED)

    def test_the_conflict_comes_before_the_privileges(self):
        self.assert_parameters(self.post("101", b"vmid=102", token="poor"), vmid=CONFLICT)

    def test_unknown_parameters(self):
        self.assert_parameters(self.post(body=b"foo=1"), foo=UNDEFINED)

    def test_vmids(self):
        invalid = "invalid format - value does not look like a valid VM ID\n"
        for vmid in ("99", "0", "1000000000", "0100", "-100"):
            self.assert_parameters(self.post(vmid), vmid=invalid)
        self.assert_parameters(self.post("abc"), vmid="type check ('integer') failed - got 'abc'")
        self.assert_parameters(self.post("3.0"), vmid="type check ('integer') failed - got '3.0'")
        self.assertEqual(self.post("300%0A").line[9:12], "403")
        self.assertEqual(self.post("%3300").line, "HTTP/1.1 200 OK")

    def test_keys_in_path_and_body(self):
        self.assert_parameters(self.post(body=b"vmid=301"), vmid=CONFLICT)
        self.assert_parameters(self.post(body=b"vmid=300&vmid=300"), vmid=CONFLICT)
        self.assert_parameters(self.post(body=b"node=other"), node=CONFLICT)
        self.assertEqual(self.post(body=b"vmid=300").line, "HTTP/1.1 200 OK")
        typed = ["Content-Type: application/json"]
        self.assertEqual(self.post(body=b'{"vmid":300}', headers=typed).line, "HTTP/1.1 200 OK")
        self.assert_parameters(self.post(body=b'{"vmid":301}', headers=typed), vmid=CONFLICT)

    def test_malformed_names(self):
        storage = "invalid format - storage ID 'storage!' contains illegal characters\n"
        self.assert_parameters(self.post(body=b"storages=storage!"), storages=storage)
        self.assert_parameters(
            self.post(body=b"bridges=bridge!"), bridges="invalid format - invalid bridge ID 'bridge!'\n"
        )

    def test_the_query_of_a_post_is_no_parameter(self):
        self.assertEqual(self.ask("POST", "/nodes/localhost/qemu/300/mtunnel?foo=1", body=b"").line, "HTTP/1.1 200 OK")

    def test_what_the_tunnels_refuse(self):
        taken = f"unable to create empty VM config - VM 300 already exists on node '{NODE}'\n"
        self.tunnels.failure = InvalidParameters({"vmid": taken})
        self.assert_parameters(self.post(), vmid=taken)
        for text in ("storage 'nosuch' does not exist", "bridge 'vmbr77' does not exist"):
            self.tunnels.failure = TunnelError(text)
            self.assert_error(self.post(), f"500 {text}")
        self.tunnels.failure = PermissionDenied("/storage/x", "Datastore.AllocateSpace")
        self.assert_error(self.post(), "403 Permission check failed (/storage/x, Datastore.AllocateSpace)")

    def test_a_bug(self):
        self.tunnels.failure = ZeroDivisionError("secret")
        response = self.post()
        self.assert_error(response, "500 internal error")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_client_that_does_not_wait(self):
        held = Deferred()

        async def slow_open(*_):
            await held
            return await type(self.tunnels).open(self.tunnels, 300, "t", (), ())

        self.tunnels.open = slow_open
        wire = self.wire()
        wire.write(self.raw("POST", "/api2/json/nodes/localhost/qemu/300/mtunnel", body=b""))
        wire.hang_up()
        held.callback(None)
        self.assertTrue(wire.silent())
        self.assertEqual(len(self.tunnels.opened), 1)


class CredentialTests(ApiCase):
    def assert_refused(self, status, *headers):
        wire = self.wire()
        wire.write(self.raw("GET", "/api2/json/version", headers=headers, token=None))
        self.clock.advance(2.9)
        self.assertTrue(wire.silent())
        self.clock.advance(0.2)
        response = wire.response()
        self.assertEqual((response.line, response.body), (f"HTTP/1.1 {status}", b""))

    def test_no_credentials(self):
        self.assert_refused("401 No ticket")
        self.assert_refused("401 No ticket", "Authorization: Basic Zm9vOmJhcg==")

    def test_bad_credentials(self):
        for token in (
            "mig@pve!t1=wrong",
            "mig@pve!none=x",
            "nobody",
            "=",
            f"mig@pve!old={SECRET}",
            f"off@pve!t1={SECRET}",
            f"late@pve!t1={SECRET}",
            "\udcff\udcfe",
        ):
            self.assert_refused("401 Authentication failed!", f"Authorization: PVEAPIToken={token}")

    def test_credentials_come_before_the_route(self):
        wire = self.wire()
        wire.write(self.raw("PUT", "/nowhere", token=None))
        self.clock.advance(3)
        self.assertEqual(wire.response().line, "HTTP/1.1 401 No ticket")

    def test_a_client_that_leaves_is_forgotten(self):
        wire = self.wire()
        wire.write(self.raw("GET", "/", token=None))
        wire.hang_up()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_only_so_many_are_held(self):
        wires = [self.wire() for _ in range(MOST_DELAYED + 1)]
        for wire in wires:
            wire.write(self.raw("GET", "/", token=None))
        self.assertEqual(wires[-1].response().line, "HTTP/1.1 503 too many failed logins")
        self.assertEqual(self.ask("GET", "/version").line, "HTTP/1.1 200 OK")
        wires[0].hang_up()
        late = self.wire()
        late.write(self.raw("GET", "/", token=None))
        self.assertTrue(late.silent())
        self.clock.advance(3)
        self.assertEqual(late.response().line, "HTTP/1.1 401 No ticket")


class CheckTests(ApiCase):
    """A VM is shown before anything of it is sent."""

    def check(self, **sent):
        headers = ["Content-Type: application/json"]
        body = json.dumps({"conf": "memory: 512\n", **sent}).encode()
        return self.ask("POST", "/nodes/localhost/qemu/300/mtunnelcheck", headers=headers, body=body)

    def test_what_is_handed_on(self):
        disk = {"key": "scsi0", "volume": "far:100/vm-100-disk-0.raw", "size": 1024, "written": 512, "storage": "local"}
        disk |= {"volname": "vm-300-disk-0.raw", "format": "raw", "export_formats": "raw+size"}
        response = self.check(disks=[disk], storages="local", bridges="vmbr0", online=1, sender="mtunnel-tx/1")
        call, token = self.tunnels.checked
        self.assertEqual((call.vmid, token, call.online, call.delete), (300, "mig@pve!t1", True, False))
        self.assertEqual((call.storages, call.bridges), (("local",), ("vmbr0",)))
        (coming,) = call.disks
        self.assertEqual((coming.size_bytes, coming.written_bytes, coming.mirrored), (1024, 512, False))
        self.assertEqual((coming.how.volname, coming.how.export_formats), ("vm-300-disk-0.raw", ("raw+size",)))
        (operation,) = [each for each in OPERATIONS if each.path.endswith("/mtunnelcheck")]
        Draft202012Validator(dict(operation.gives)).validate(response.data)

    def test_a_disk_that_is_none(self):
        response = self.check(disks=[{"key": "scsi0"}])
        self.assertEqual(response.json["errors"]["disks.0.volume"], "property is missing and it is not optional")
        self.assert_parameters(self.check(disks=[{}] * 513), disks="list may only have 512 items")
