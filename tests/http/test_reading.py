"""What a source reads before it opens a tunnel and while it waits; where each request goes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mtunnel_tx import __version__
from mtunnel_tx.http.table import find_operation, split_path
from tests.http.apicase import FINGERPRINT, NODE, ApiCase, FakeStorage

UNDEFINED = "property is not defined in schema and the schema does not allow additional properties"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
WEBSOCKET = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}")


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

    def test_a_storage_that_makes_other_images_of_raw_streams(self):
        self.patch(FakeStorage, "converts", True)
        self.assertEqual({entry["converts"] for entry in self.ask("GET", "/nodes/localhost/storage").data}, {1})

    def names(self, query, token="t1"):
        return [entry["storage"] for entry in self.ask("GET", f"/nodes/localhost/storage?{query}", token=token).data]

    def test_storages_chosen(self):
        self.assertEqual(self.names(""), ["local", "iso", "off"])
        self.assertEqual(self.names("content=images"), ["local", "off"])
        self.assertEqual(self.names("storage=iso"), ["iso"])
        self.assertEqual(self.names("enabled=1", token="poor"), ["iso"])

    def test_volumes(self):
        disk = {"volid": "iso:100/vm-100-disk-0.raw", "content": "images", "format": "raw", "size": 512, "vmid": 100}
        iso = {"volid": "iso:iso/a.iso", "content": "iso", "format": "iso", "size": 2048}
        path = "/nodes/localhost/storage/iso/content"
        self.assertEqual(self.ask("GET", path, token="poor").data, [disk, iso])
        self.assertEqual(self.ask("GET", f"{path}?vmid=100").data, [disk])
        self.assertEqual(self.ask("GET", f"{path}?vmid=101").data, [])
        self.assertEqual(self.ask("GET", f"{path}?content=iso").data, [iso])
        self.assertEqual(self.ask("GET", f"{path}?vmid=5").line[9:12], "400")
        missing = self.ask("GET", "/nodes/localhost/storage/nosuch/content")
        self.assert_error(missing, "500 storage 'nosuch' does not exist")
        denied = "403 Permission check failed (/storage/local, Datastore.Audit|Datastore.AllocateSpace)"
        local = self.ask("GET", "/nodes/localhost/storage/local/content", token="poor")
        self.assertEqual(local.line, f"HTTP/1.1 {denied}")

    def test_certificates(self):
        expected = [{"filename": "pveproxy-ssl.pem", "fingerprint": FINGERPRINT}]
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
        task = self.tasks.start("qmtunnel", 300, "mig@pve!t1")
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
        mine, other = (self.tasks.start("qmtunnel", 300, token) for token in ("mig@pve!poor", "mig@pve!t1"))
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
        request, *_ = self.upgraded[0]
        self.assertNotIn("good", repr(request))

    @settings(deadline=None, max_examples=100)
    @given(st.text(max_size=40), st.sampled_from(["GET", "POST"]))
    def test_any_path_leads_somewhere_or_nowhere(self, text, method):
        path = split_path(b"/api2/json/" + text.encode("utf-8", "surrogatepass"))
        found = find_operation(method, path)
        self.assertTrue(found is None or path[2:] == ("version",) or len(path) > 3)
