"""The API's description: valid, whole, and true for what the daemon answers."""

import json
import re
from typing import ClassVar

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import (
    BackendFailed,
    BadRequest,
    Forbidden,
    NotFound,
    NotYet,
    TimedOut,
    TunnelError,
    Unreachable,
    WrongState,
)
from mtunnel_tx.http.openapi import describe_api, failures
from mtunnel_tx.http.table import BASE, OPERATIONS
from mtunnel_tx.tunnel.qemu.table import QEMU_COMMANDS
from tests.cli.test_main import run
from tests.http.apicase import NODE, ApiCase
from tests.http.test_attaching import AttachCase

FORM = "Content-Type: application/x-www-form-urlencoded"
ATTACH = "/nodes/{node}/qemu/{vmid}/mtunnelattach"
UPID = f"UPID:{NODE}:00000001:00000001:6B0CE8BB:qmtunnel:300:mig@pve!t1:"


def description():
    return describe_api(OPERATIONS, QEMU_COMMANDS.values(), BASE)


class DocumentTests(SynchronousTestCase):
    def test_it_is_valid(self):
        validate(description(), cls=OpenAPIV31SpecValidator)

    def test_every_operation_is_in_it(self):
        paths = description()["paths"]
        for operation in OPERATIONS:
            shown = paths[f"/api2/json{operation.path}"][operation.method.lower()]
            body = shown.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            named = {parameter["name"] for parameter in shown["parameters"]} | body.get("properties", {}).keys()
            self.assertEqual(named - {"node"}, operation.schema.names - {"node"}, operation.path)
            self.assertEqual(len(shown["x-needs"]), len(operation.needs))

    def test_names_are_unique(self):
        shown = [one["operationId"] for path in description()["paths"].values() for one in path.values()]
        self.assertEqual(len(shown), len(set(shown)))

    def test_commands_have_schemas(self):
        commands = {one["cmd"]: one for one in description()["x-tunnel-commands"]}
        self.assertEqual(commands.keys(), QEMU_COMMANDS.keys())
        for command in commands.values():
            Draft202012Validator.check_schema(command["parameters"])
        Draft202012Validator(commands["disk"]["parameters"]).validate({"storage": "local", "drive": {"size": 1}})


class AnswerTests(ApiCase):
    """What comes is what is described."""

    EXAMPLES = (
        "/cluster/resources?type=vm",
        "/nodes/localhost/storage",
        "/nodes/localhost/certificates/info",
        "/cluster/qemu/custom-cpu-models/known",
        "/cluster/status",
        "/version",
        "/access/permissions?path=/vms/100",
        f"/nodes/{NODE}/network?type=any_bridge",
        "/mtunnel/openapi",
        "/mtunnel/moves",
        "/nodes/localhost/storage/local/content",
        "/nodes/localhost/qemu/300/mtunneldigest?volume=local:300/vm-300-disk-0.raw",
    )
    POSTS: ClassVar = {"mtunnel": "", "mtunnelcheck": "conf=name: a", "mtunnellate": "upid=UPID:x:"}

    def test_answers_fit(self):
        for example in self.EXAMPLES:
            path = example.partition("?")[0].replace("/known", "/{cputype}")
            path = path.replace("/local/", "/{storage}/").replace("/qemu/300", "/qemu/{vmid}")
            path = path.replace("/nodes/localhost", "/nodes/{node}").replace(f"/nodes/{NODE}", "/nodes/{node}")
            (operation,) = [one for one in OPERATIONS if one.path == path and one.method == "GET"]
            with self.subTest(path=path):
                Draft202012Validator(dict(operation.gives)).validate(self.ask("GET", example).data)

    def test_answers_to_posts_fit(self):
        for name, form in self.POSTS.items():
            path = f"/nodes/{{node}}/qemu/{{vmid}}/{name}"
            (operation,) = [one for one in OPERATIONS if one.path == path and one.method == "POST"]
            answer = self.ask("POST", f"/nodes/localhost/qemu/300/{name}", headers=[FORM], body=form.encode())
            self.assertEqual(answer.line, "HTTP/1.1 200 OK", name)
            Draft202012Validator(dict(operation.gives)).validate(answer.data)


class RefusalTests(ApiCase):
    """Every operation refuses as it is described, and says it in the shape that is described."""

    QUERIES: ClassVar = {
        "/access/permissions": "path=/",
        "/nodes/{node}/qemu/{vmid}/mtunneldigest": "volume=local:300/vm-300-disk-0.raw",
        "/nodes/{node}/qemu/{vmid}/mtunnelwebsocket": "socket=/x&ticket=good",
        "/nodes/{node}/qemu/{vmid}/mtunnelabandon": "upid=UPID:x:",
    }
    PLACES: ClassVar = {"node": NODE, "vmid": "300", "upid": UPID, "storage": "local", "cputype": "known"}

    def setUp(self):
        super().setUp()
        self.described = description()
        self.problem = Draft202012Validator(self.described["components"]["schemas"]["problem"])

    def request(self, operation, query="", body=b"", **more):
        """Returns: the answer, however long it is held up."""
        places = {**self.PLACES, **more.pop("places", {})}
        path = re.sub(r"\{(\w+)\}", lambda found: places[found[1]], operation.path)
        wire = self.wire()
        posted = {"body": body or query.encode()} if operation.method == "POST" else {}
        headers = [*more.pop("headers", ()), *([FORM] if posted else [])]
        shown = path if posted or not query else f"{path}?{query}"
        wire.write(self.raw(operation.method, f"/api2/json{shown}", headers=headers, **posted, **more))
        if wire.silent():
            self.clock.advance(3)
        return wire.response()

    def assert_refused(self, operation, answer, status):
        self.assertEqual(answer.line.split()[1], str(status), (operation.path, answer))
        shown = self.described["paths"][f"/api2/json{operation.path}"][operation.method.lower()]
        self.assertIn(str(status), shown["responses"], operation.path)
        if answer.body:
            self.problem.validate(answer.json)

    def test_without_a_token(self):
        for operation in OPERATIONS:
            self.assert_refused(operation, self.request(operation, token=None), 401)

    def test_an_unknown_parameter(self):
        for operation in OPERATIONS:
            if not operation.schema.json_schema().get("additionalProperties", True):
                answer = self.request(operation, "nonsense=1")
                self.assert_refused(operation, answer, 400)
                self.assertIn("nonsense", answer.json["errors"], operation.path)

    def test_a_path_that_makes_no_sense(self):
        for operation in OPERATIONS:
            if "{vmid}" in operation.path:
                answer = self.request(operation, places={"vmid": "7"})
                self.assert_refused(operation, answer, 400)
                self.assertIn("vmid", answer.json["errors"], operation.path)

    def test_every_failure_that_there_is(self):
        """Of an operation that may fail in all ways."""
        (operation,) = [one for one in OPERATIONS if one.path.endswith("/mtunnel")]
        kinds = (BadRequest, Forbidden, NotFound, WrongState, BackendFailed, Unreachable, NotYet, TimedOut, TunnelError)
        for kind in kinds:
            self.tunnels.failure = kind("why")
            status = 500 if kind is NotFound else kind.status
            self.assert_refused(operation, self.request(operation), status)

    def test_too_large(self):
        for operation in OPERATIONS:
            if operation.method == "POST":
                self.assert_refused(operation, self.request(operation, body=b"x" * (2 << 20)), 413)

    def test_without_the_right(self):
        """A token that may do nothing: who says that this is refused refuses it, and nobody else does."""
        for operation in OPERATIONS:
            if operation.path.endswith("/mtunnelattach"):
                continue  # a flow has to be known first: AttachTests
            status = int(self.request(operation, self.QUERIES.get(operation.path, ""), token="none").line.split()[1])
            self.assertEqual(status == 403, 403 in failures(operation), (operation.path, status))
            self.assertIn(status, {200, *failures(operation)}, operation.path)

    def test_only_what_can_happen_is_described(self):
        described = {operation.path: failures(operation) for operation in OPERATIONS}
        self.assertEqual(described["/version"], [400, 401, 413, 431, 500, 503])
        self.assertEqual(described["/cluster/resources"], described["/version"])
        self.assertEqual(described["/cluster/status"], [400, 401, 403, 413, 431, 500, 503])
        self.assertEqual([path for path, codes in described.items() if 410 in codes], [ATTACH])
        shown = self.described["paths"]["/api2/json/version"]["get"]["responses"]
        self.assertEqual(sorted(shown), ["200", "400", "401", "413", "431", "500", "503"])

    def test_a_header_that_is_too_large(self):
        for operation in OPERATIONS:
            answer = self.request(operation, headers=[f"X: {'x' * 70000}"], query="")
            self.assert_refused(operation, answer, 431)


class AttachTests(AttachCase):
    """What only a flow that is known can be refused with."""

    def setUp(self):
        super().setUp()
        (self.operation,) = [one for one in OPERATIONS if one.path == ATTACH]

    def test_without_the_right(self):
        answer = self.attach(self.flow(token="mig@pve!none"), token="none").response()
        self.assertEqual(answer.line.split()[1], "403")
        self.assertIn(403, failures(self.operation))

    def test_a_flow_that_has_ended(self):
        flow = self.flow()
        self.end_tunnel("kept")
        flow.flow.end()
        answer = self.attach(flow).response()
        self.assertEqual(answer.line.split()[1], "410")
        self.assertIn(410, failures(self.operation))
        Draft202012Validator(description()["components"]["schemas"]["ended"]).validate(answer.json)


class CommandTests(SynchronousTestCase):
    def test_openapi(self):
        status, out, err = run("api", "--openapi")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(json.loads(out), json.loads(json.dumps(description())))

    def test_table(self):
        status, out, _ = run("api")
        self.assertEqual(status, 0)
        for word in ("mtunnelwebsocket", "Sys.Incoming on /", "disk-import"):
            self.assertIn(word, out)
