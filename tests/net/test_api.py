"""Every row of both tables of protocol.md section 1, and what a hostile peer may try."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, serverFromString
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mtunnel_tx import __version__
from mtunnel_tx.errors import BackendFailed, InvalidParameters, PermissionDenied, TunnelError, WrongState
from mtunnel_tx.net.api import MOST_DELAYED, find_endpoint, split_path
from mtunnel_tx.net.replies import clean, reason_phrase
from tests.net.apicase import NODE, SECRET, ApiCase

UNDEFINED = "property is not defined in schema and the schema does not allow additional properties"
MISSING = "property is missing and it is not optional"
CONFLICT = "duplicate parameter (already defined in URI) with conflicting values!"
WEBSOCKET = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: abc=")


class OpenTests(ApiCase):
    def test_opens_a_tunnel(self):
        response = self.post(body=b"storages=a1%2Cb1&bridges=vmbr0")
        self.assertEqual(response.line, "HTTP/1.1 200 OK")
        expected = {"upid": "UPID:x:", "ticket": "PVETUNNEL:x", "socket": "/run/qemu-server/300.mtunnel"}
        self.assertEqual(response.json, {"data": expected})
        self.assertEqual(self.tunnels.opened, [(300, "mig@pve!t1", ("a1", "b1"), ("vmbr0",))])

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
        for body in (b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000, b"1" * 5000):
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


class WebsocketTests(ApiCase):
    def get(self, query="socket=%2Frun%2Fqemu-server%2F300.mtunnel&ticket=good", vmid=300, **more):
        return self.ask("GET", f"/nodes/localhost/qemu/{vmid}/mtunnelwebsocket?{query}", **more)

    def test_without_upgrade(self):
        self.assertEqual(self.get().json, {"data": {"socket": "/run/qemu-server/300.mtunnel"}})

    def test_a_trailing_ampersand(self):
        self.assertEqual(self.get("ticket=good&socket=x&").data, {"socket": "x"})

    def test_with_upgrade(self):
        wire = self.wire()
        path = "/api2/json/nodes/localhost/qemu/300/mtunnelwebsocket?socket=x&ticket=good&"
        wire.write(self.raw("GET", path, headers=WEBSOCKET))
        self.assertTrue(wire.silent())
        ((request, route),) = self.upgraded
        self.assertEqual((route.vmid, route.token), (300, "mig@pve!t1"))
        self.assertIs(request.channel, wire.channel)

    def test_missing_parameters(self):
        self.assert_parameters(self.get("socket=x"), ticket=MISSING)
        self.assert_parameters(self.get(""), ticket=MISSING, socket=MISSING)

    def test_no_config_is_told_before_the_ticket_is_looked_at(self):
        text = f"Configuration file 'nodes/{NODE}/qemu-server/399.conf' does not exist"
        self.assert_error(self.get("socket=x&ticket=bad", 399), f"500 {text}")

    def test_a_bad_ticket_waits(self):
        wire = self.wire()
        path = "/api2/json/nodes/localhost/qemu/300/mtunnelwebsocket?socket=x&ticket=bad"
        wire.write(self.raw("GET", path, headers=WEBSOCKET))
        self.clock.advance(2.9)
        self.assertTrue(wire.silent())
        self.clock.advance(0.2)
        self.assert_error(wire.response(), "401 permission denied - invalid PVETUNNEL ticket")
        self.assertEqual(self.upgraded, [])

    def refused(self, *headers):
        response = self.get(headers=headers)
        self.assertEqual(self.upgraded, [])
        self.assertEqual(response.body.decode(), response.line.partition(" 500 ")[2])
        return response.line

    def test_version_key_protocol(self):
        upgrade, _, version, key = WEBSOCKET
        old = "Sec-WebSocket-Version: 8"
        self.assertEqual(self.refused(upgrade, old, key), "HTTP/1.1 500 unsupported websocket-version '8'")
        self.assertEqual(self.refused(upgrade, key), "HTTP/1.1 500 unsupported websocket-version ''")
        self.assertEqual(self.refused(upgrade, version), "HTTP/1.1 500 missing websocket-key")
        self.assertEqual(self.refused("Upgrade: h2c", version, key), "HTTP/1.1 500 unable to upgrade to protocol 'h2c'")

    def test_a_second_command_connection(self):
        self.upgrade_failure = WrongState("the tunnel has its command connection already")
        response = self.get(headers=WEBSOCKET)
        self.assert_error(response, "409 the tunnel has its command connection already")

    def test_nobody_listens(self):
        self.upgrade_failure = BackendFailed("can't connect to '300.mtunnel'")
        self.assert_error(self.get(headers=WEBSOCKET), "502 can't connect to '300.mtunnel'")

    def test_a_client_that_leaves_during_the_upgrade(self):
        self.upgrade_failure = ConnectionLost()
        wire = self.wire()
        wire.write(
            self.raw(
                "GET", "/api2/json/nodes/localhost/qemu/300/mtunnelwebsocket?socket=x&ticket=good", headers=WEBSOCKET
            )
        )
        wire.hang_up()
        self.assertTrue(wire.silent())

    def test_vmid_and_node_are_checked(self):
        self.assert_parameters(self.get(vmid="abc"), vmid="type check ('integer') failed - got 'abc'")
        path = "/nodes/other/qemu/300/mtunnelwebsocket?socket=x&ticket=good"
        self.assertEqual(list(self.ask("GET", path).json["errors"]), ["node"])

    def test_a_key_given_in_the_query_too(self):
        self.assert_parameters(self.get("socket=x&ticket=good&vmid=301"), vmid=CONFLICT)

    def test_digest(self):
        path = "/nodes/localhost/qemu/300/mtunneldigest"
        good = self.ask("GET", f"{path}?volume=local:300/vm-300-disk-0.raw")
        self.assertEqual(good.json, {"data": {"sha256": "ab" * 32}})
        text = "volume 'local:1' is not of a live tunnel of yours"
        self.assert_error(self.ask("GET", f"{path}?volume=local:1"), f"500 {text}")
        self.assert_parameters(self.ask("GET", path), volume=MISSING)


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


class ReadTests(ApiCase):
    def test_cluster_resources(self):
        shown = self.ask("GET", "/cluster/resources?type=vm").data
        common = {"id": "qemu/100", "vmid": 100, "type": "qemu", "node": NODE, "name": "web", "status": "running"}
        self.assertEqual(shown[0], common)
        self.assertEqual(
            [(entry["vmid"], entry["status"]) for entry in shown[1:]], [(101, "stopped"), (102, "unknown")]
        )
        self.assertEqual(len(self.ask("GET", "/cluster/resources").data), 3)
        self.assertEqual(self.ask("GET", "/cluster/resources?type=storage").data, [])
        self.assertEqual(self.ask("GET", "/cluster/resources?type=x").line[9:12], "400")

    def test_cluster_resources_shows_what_may_be_seen(self):
        shown = self.ask("GET", "/cluster/resources?type=vm", token="poor").data
        self.assertEqual([entry["vmid"] for entry in shown], [101])

    def test_storages(self):
        shown = self.ask("GET", "/nodes/localhost/storage?enabled=1").data
        local = {"storage": "local", "type": "dir", "content": "images,iso", "enabled": 1, "active": 1, "shared": 0}
        self.assertEqual(shown[0], {**local, "avail": 1 << 30})
        self.assertEqual([entry["storage"] for entry in shown], ["local", "iso"])
        self.assertEqual(shown[1]["shared"], 1)

    def names(self, query, token="t1"):
        return [entry["storage"] for entry in self.ask("GET", f"/nodes/localhost/storage?{query}", token=token).data]

    def test_storages_chosen(self):
        self.assertEqual(self.names(""), ["local", "iso", "off"])
        self.assertEqual(self.names("content=images"), ["local", "off"])
        self.assertEqual(self.names("storage=iso"), ["iso"])
        self.assertEqual(self.names("enabled=1", token="poor"), ["iso"])

    def test_certificates(self):
        expected = [{"filename": "pveproxy-ssl.pem", "fingerprint": "AA:BB"}]
        self.assertEqual(self.ask("GET", "/nodes/localhost/certificates/info", token="poor").data, expected)

    def test_cpu_models(self):
        path = "/cluster/qemu/custom-cpu-models/"
        self.assertEqual(self.ask("GET", path + "known").data["reported-model"], "kvm64")
        self.assertEqual(self.ask("GET", path + "custom-known").data["cputype"], "custom-known")
        self.assert_error(self.ask("GET", path + "nosuch"), "500 Custom cputype 'nosuch' not found")
        denied = "403 Permission check failed (/mapping/cpu/known, Mapping.Audit|Mapping.Use|Mapping.Modify)"
        self.assertEqual(self.ask("GET", path + "known", token="poor").line, f"HTTP/1.1 {denied}")
        self.assertEqual(self.ask("GET", path + "..%2Fx").line[9:12], "400")

    def test_cluster_status(self):
        shown = self.ask("GET", "/cluster/status").data
        self.assertEqual([(entry["name"], entry["local"]) for entry in shown], [("other", 0), (NODE, 1)])
        self.assertEqual((shown[1]["type"], shown[1]["online"]), ("node", 1))
        self.assert_error(
            self.ask("GET", "/cluster/status", token="poor"), "403 Permission check failed (/, Sys.Audit)"
        )

    def test_own_permissions(self):
        data = self.ask("GET", "/access/permissions?path=/vms/300").data
        self.assertEqual(data["/vms/300"]["VM.Allocate"], 1)
        data = self.ask("GET", "/access/permissions?path=/vms/300", token="poor").data
        self.assertEqual(data["/vms/300"], {"VM.Allocate": 1})

    def test_bridges(self):
        data = self.ask("GET", "/nodes/localhost/network?type=any_bridge").data
        self.assertEqual(data, [{"iface": "vmbr0", "type": "bridge", "active": 1}])

    def test_version(self):
        expected = {"version": "9.2.0", "release": "9.2", "repoid": f"mtunnel-tx-{__version__}"}
        self.assertEqual(self.ask("GET", "/version", token="poor").data, expected)
        self.assert_parameters(self.ask("GET", "/version?foo"), foo=UNDEFINED)

    def test_tasks(self):
        task = self.tasks.start(300, "mig@pve!t1")
        task.line("mtunnel started")
        task.finish("OK")
        path = f"/nodes/{NODE}/tasks/{task.upid.replace(':', '%3A')}"
        status = self.ask("GET", f"{path}/status").data
        self.assertEqual((status["upid"], status["status"], status["exitstatus"]), (task.upid, "stopped", "OK"))
        log = self.ask("GET", f"{path}/log").json
        self.assertEqual(log, {"data": [{"n": 1, "t": "mtunnel started"}, {"n": 2, "t": "TASK OK"}], "total": 2})
        self.assertEqual(self.ask("GET", f"{path}/log?start=1&limit=1").data, [{"n": 2, "t": "TASK OK"}])
        self.assertEqual(self.ask("GET", f"{path}/log?start=-1").line[9:12], "400")

    def test_tasks_of_others(self):
        mine, other = (self.tasks.start(300, token) for token in ("mig@pve!poor", "mig@pve!t1"))
        self.assertEqual(self.ask("GET", f"/nodes/localhost/tasks/{mine.upid}/log", token="poor").line[9:12], "200")
        response = self.ask("GET", f"/nodes/localhost/tasks/{other.upid}/log", token="poor")
        self.assertEqual(response.line, f"HTTP/1.1 403 Permission check failed (/nodes/{NODE}, Sys.Audit)")
        mine.finish("OK")
        other.finish("OK")

    def test_tasks_that_are_none(self):
        unknown = f"UPID:{NODE}:00000001:00000001:00000001:qmtunnel:1:mig@pve!t1:"
        self.assert_parameters(self.ask("GET", f"/nodes/{NODE}/tasks/{unknown}/status"), upid="no such task")
        for upid in ("x", "UPID:..%2F..:1", "..%2F..%2Fuser.cfg"):
            response = self.ask("GET", f"/nodes/{NODE}/tasks/{upid}/log")
            self.assert_parameters(response, upid="unable to parse worker upid")


class RouteTests(ApiCase):
    def assert_unknown(self, method, path, shown=None):
        text = f"Method '{method} {shown or path}' not implemented"
        self.assert_error(self.ask(method, path), f"501 {text}", text)

    def test_unknown_paths_and_methods(self):
        self.assert_unknown("GET", "/nodes/pvetest/nosuch")
        self.assert_unknown("PUT", "/version")
        self.assert_unknown("DELETE", "/nodes/localhost/qemu/300/mtunnel")
        self.assert_unknown("OPTIONS", "/version")
        self.assert_unknown("GET", "/nodes/localhost/qemu/300/mtunnel")
        self.assert_unknown("POST", "/nodes/localhost/qemu/300/mtunnelwebsocket")
        self.assert_unknown("GET", "/")

    def test_head_has_no_body(self):
        wire = self.wire()
        wire.write(self.raw("HEAD", "/api2/json/version"))
        data = wire.transport.value()
        self.assertTrue(data.startswith(b"HTTP/1.1 501 Method 'HEAD /version' not implemented\r\n"))
        self.assertTrue(data.endswith(b"\r\n\r\n"))

    def test_outside_the_base(self):
        wire = self.wire()
        wire.write(self.raw("GET", "/favicon.ico"))
        self.assertEqual(wire.response().line, "HTTP/1.1 501 Method 'GET /favicon.ico' not implemented")

    def test_dots_and_slashes(self):
        for path in ("/nodes/../version", "/./version", "/nodes/localhost/qemu/300%2Fmtunnel", "/version/x"):
            self.assertEqual(self.ask("GET", path).line[9:12], "501", path)
        for path in ("//version", "/version/", "/%76ersion"):
            self.assertEqual(self.ask("GET", path).line[9:12], "200", path)

    def test_control_characters_stay_out_of_the_status_line(self):
        for path in ("/x%0D%0AEvil:%201", "/x%00", "/x%C2%85", "/x%E2%80%A8", "/" + "y" * 400):
            response = self.ask("GET", path)
            self.assertNotIn("evil", response.headers)
            self.assertLessEqual(len(response.line), len("HTTP/1.1 501 ") + 200)
            self.assertTrue(response.line.isprintable())
        self.assertIn("\r\nEvil: 1", self.ask("GET", "/x%0D%0AEvil:%201").json["message"])

    def test_a_client_that_puts_line_ends_into_every_value(self):
        evil = "%0D%0ASet-Cookie:%20a=b%0D%0A%0D%0A"
        answers = [
            self.post(f"300{evil}"),
            self.post(node=f"x{evil}"),
            self.post(body=f"storages=local{evil}x".encode()),
            self.post(body=f"bridges={evil}".encode(), token="poor"),
            self.post(body=f"foo{evil}=1".encode()),
            self.post(body=b"x", headers=["Content-Type: text/\x0bplain"]),
            self.ask("GET", f"/cluster/qemu/custom-cpu-models/a{evil}", token="poor"),
            self.ask("GET", f"/nodes/localhost/qemu/300/mtunneldigest?volume=a{evil}"),
            self.ask("GET", f"/cluster/resources?type=a{evil}"),
            self.ask("GET", f"/nodes/localhost/tasks/a{evil}/log", token="poor"),
            self.ask(
                "GET", "/nodes/localhost/qemu/300/mtunnelwebsocket?socket=x&ticket=good", headers=["Upgrade: a\x01b"]
            ),
        ]
        for response in answers:
            self.assertNotIn("set-cookie", response.headers)
            self.assertTrue(response.line.isprintable(), response.line)

    def test_invalid_utf8(self):
        self.assertEqual(self.ask("GET", "/nodes/%FF/storage").json["errors"].keys(), {"node"})
        self.assertEqual(self.ask("GET", "/version?%FF=%FE").json["errors"], {"\ufffd": UNDEFINED})
        self.assertEqual(self.post(body=b"storages=\xff").line[9:12], "400")
        self.assertEqual(self.post(body=b"x", headers=["Content-Type: \udcff"]).line[9:12], "506")
        self.assertEqual(self.ask("GET", "/version", headers=["Upgrade: \udcff"]).line[9:12], "200")

    def test_too_many_parameters(self):
        self.assert_error(self.ask("GET", "/version?" + "a&" * 1001), "400 too many parameters")

    def test_the_log_names_no_ticket(self):
        wire = self.wire()
        wire.write(
            self.raw(
                "GET", "/api2/json/nodes/localhost/qemu/300/mtunnelwebsocket?ticket=good&socket=x", headers=WEBSOCKET
            )
        )
        request, _ = self.upgraded[0]
        self.assertNotIn("good", repr(request))

    @settings(deadline=None, max_examples=100)
    @given(st.text(max_size=40), st.sampled_from(["GET", "POST"]))
    def test_any_path_leads_somewhere_or_nowhere(self, text, method):
        path = split_path(b"/api2/json/" + text.encode("utf-8", "surrogatepass"))
        found = find_endpoint(method, path)
        self.assertTrue(found is None or path[2:] == ("version",) or len(path) > 3)


class LimitTests(ApiCase):
    def test_a_body_that_says_it_is_too_large(self):
        wire = self.wire()
        wire.write(b"POST /api2/json/version HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1048577\r\n\r\n")
        self.assertEqual(wire.response().line, "HTTP/1.1 413 Request Entity Too Large")
        wire.write(b"x" * 1_048_577)
        self.assertTrue(wire.silent())
        self.clock.advance(2)
        self.assertTrue(wire.transport.disconnecting)

    def test_the_largest_body(self):
        response = self.post(body=b"foo=" + b"x" * (self.limits.body_bytes - 4))
        self.assert_parameters(response, foo=UNDEFINED)

    def test_a_body_in_chunks_that_is_too_large(self):
        wire = self.wire()
        wire.write(self.raw("POST", "/api2/json/version", headers=["Transfer-Encoding: chunked"]))
        for _ in range(17):
            wire.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
        self.assertEqual(wire.response().line, "HTTP/1.1 413 Request Entity Too Large")
        wire.write(b"0\r\n\r\n" + self.raw("GET", "/api2/json/version"))
        self.assertTrue(wire.silent())

    def test_a_body_in_chunks(self):
        wire = self.wire()
        path = "/api2/json/nodes/localhost/qemu/300/mtunnel"
        wire.write(self.raw("POST", path, headers=["Transfer-Encoding: chunked"]) + b"5\r\nfoo=1\r\n0\r\n\r\n")
        self.assert_parameters(wire.response(), foo=UNDEFINED)

    def test_headers_that_are_too_large(self):
        for head in (
            b"X: " + b"x" * 40_000,
            b"X: " + b"x" * 40_000 + b"\r\n",
            (b"Xy: " + b"z" * 100 + b"\r\n") * 400,
            b"x" * 40_000,
        ):
            wire = self.wire()
            wire.write(b"GET /api2/json/version HTTP/1.1\r\n" + head)
            self.assertEqual(wire.response().line, "HTTP/1.1 431 Request Header Fields Too Large")
            wire.write(b"\r\n\r\n")
            self.assertTrue(wire.silent())
            self.clock.advance(2)
            self.assertTrue(wire.transport.disconnecting)

    def test_large_headers(self):
        response = self.ask("GET", "/version", headers=["X: " + "x" * 30_000])
        self.assertEqual(response.line, "HTTP/1.1 200 OK")

    def test_the_header_limit_is_for_each_request(self):
        wire = self.wire()
        for _ in range(3):
            response = self.ask("GET", "/version", headers=["X: " + "x" * 30_000], wire=wire)
            self.assertEqual(response.line, "HTTP/1.1 200 OK")

    def test_a_request_that_trickles_in(self):
        wire = self.wire()
        for _ in range(29):
            wire.write(b"G")
            self.clock.advance(1)
        self.assertFalse(wire.transport.disconnecting)
        self.clock.advance(1)
        self.assertTrue(wire.transport.disconnecting)

    def test_a_body_that_trickles_in(self):
        wire = self.wire()
        wire.write(self.raw("POST", "/api2/json/version", headers=["Content-Length: 100"]))
        for _ in range(30):
            wire.write(b"x")
            self.clock.advance(1)
        self.assertTrue(wire.transport.disconnecting)

    def test_an_idle_connection_ends(self):
        wire = self.wire()
        self.ask("GET", "/version", wire=wire)
        self.clock.advance(29)
        self.assertFalse(wire.transport.disconnecting)
        self.clock.advance(1)
        self.assertTrue(wire.transport.disconnecting)

    def test_a_next_request_has_its_own_time(self):
        wire = self.wire()
        self.ask("GET", "/version", wire=wire)
        data = self.raw("GET", "/api2/json/version")
        self.clock.advance(29)
        wire.write(data[:10])
        self.clock.advance(29)
        wire.write(data[10:])
        self.assertEqual(wire.response().line, "HTTP/1.1 200 OK")

    def test_a_slow_answer_is_no_idle_connection(self):
        held = Deferred()

        async def slow_open(*_):
            await held
            raise TunnelError("no")

        self.tunnels.open = slow_open
        wire = self.wire()
        wire.write(self.raw("POST", "/api2/json/nodes/localhost/qemu/300/mtunnel", body=b""))
        self.clock.advance(600)
        held.callback(None)
        self.assert_error(wire.response(), "500 no")

    def test_pipelined_requests_are_answered_in_order(self):
        wire = self.wire()
        wire.write(
            self.raw("GET", "/", token=None)
            + self.raw("GET", "/api2/json/version")
            + self.raw("POST", "/api2/json/nodes/localhost/qemu/300/mtunnel", body=b"foo=1")
            + self.raw("GET", "/nowhere")
        )
        self.assertTrue(wire.silent())
        self.clock.advance(3)
        self.assertEqual([wire.response().line[9:12] for _ in range(4)], ["401", "200", "400", "501"])

    def test_http_1_0(self):
        wire = self.wire()
        wire.write(self.raw("GET", "/api2/json/version").replace(b"HTTP/1.1", b"HTTP/1.0"))
        self.assertEqual(wire.response().line, "HTTP/1.0 200 OK")
        self.assertTrue(wire.transport.disconnecting)

    def test_connection_close(self):
        wire = self.wire()
        self.assertEqual(self.ask("GET", "/version", headers=["Connection: close"], wire=wire).line[9:12], "200")
        self.assertTrue(wire.transport.disconnecting)

    def test_nonsense(self):
        for data in (
            b"\x16\x03\x01\x02\x00\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/2.0\r\n\r\n",
            b"GET / HTTP/1.1\r\nbad\r\n\r\n",
        ):
            wire = self.wire()
            wire.write(data)
            self.assertEqual(wire.response().line, "HTTP/1.1 400 Bad Request")
            self.assertTrue(wire.transport.disconnecting)

    def test_a_bug_in_the_resource(self):
        def fail(request):
            raise ZeroDivisionError("secret")

        self.site.resource.render = fail
        response = self.ask("GET", "/version")
        self.assertEqual((response.line, response.body), ("HTTP/1.1 500 internal error", b""))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_only_http_1_1_is_offered(self):
        self.assertEqual(self.site.acceptableProtocols(), [b"http/1.1"])


class ReplyTests(SynchronousTestCase):
    @given(st.text())
    def test_a_reason_is_one_short_line(self, text):
        reason = reason_phrase(text)
        self.assertLessEqual(len(reason), 200)
        self.assertFalse(set(reason) & {*range(32), *range(127, 160)})

    def test_clean(self):
        self.assertEqual(clean("a\r\nb\x00\x7f\x85\u2028\ud800ü"), "a??b?????ü")
        self.assertEqual(reason_phrase("ü\u4e2d\n"), b"\xfc?")


class Collector(Protocol):
    """Everything until the connection ends."""

    def __init__(self):
        self.data = b""
        self.ended = Deferred()

    def dataReceived(self, data):
        self.data += data

    def connectionLost(self, reason):
        self.ended.callback(self.data)


class RealSocketTests(ApiCase, TestCase):
    timeout = 20

    async def exchange(self, data):
        """What a real connection answers until the other end closes it."""
        port = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(self.site)
        self.addCleanup(port.stopListening)
        peer = await connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", port.getHost().port), Collector())
        self.addCleanup(peer.transport.abortConnection)
        peer.transport.write(data)
        return await peer.ended

    async def test_a_request(self):
        data = await self.exchange(self.raw("GET", "/api2/json/version", headers=["Connection: close"]))
        self.assertTrue(data.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertEqual(json.loads(data.partition(b"\r\n\r\n")[2])["data"]["release"], "9.2")

    async def test_a_client_that_sends_too_much_gets_its_answer(self):
        reactor.callLater(0.2, self.clock.advance, 2)
        head = self.raw("POST", "/api2/json/version", headers=["Content-Length: 8000000"])
        data = await self.exchange(head + b"x" * 8_000_000)
        self.assertTrue(data.startswith(b"HTTP/1.1 413 "), data)
