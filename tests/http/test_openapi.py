"""The API's description: valid, whole, and true for what the daemon answers."""

import json

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.http.openapi import describe_api
from mtunnel_tx.http.table import BASE, OPERATIONS
from mtunnel_tx.tunnel.qemu.table import QEMU_COMMANDS
from tests.cli.test_main import run
from tests.http.apicase import NODE, ApiCase


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
    )

    def test_answers_fit(self):
        for example in self.EXAMPLES:
            path = example.partition("?")[0].replace("/known", "/{cputype}")
            path = path.replace("/nodes/localhost", "/nodes/{node}").replace(f"/nodes/{NODE}", "/nodes/{node}")
            (operation,) = [one for one in OPERATIONS if one.path == path and one.method == "GET"]
            with self.subTest(path=path):
                Draft202012Validator(dict(operation.gives)).validate(self.ask("GET", example).data)


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
