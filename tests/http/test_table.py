"""Every operation of the API as data: what it takes, what it needs, and that both hold."""

import json
from urllib.parse import quote

from mtunnel_tx.http.table import OPERATIONS, find_operation, split_path
from tests.http.apicase import NODE, ApiCase
from tests.wire.violations import incomplete, violations

UPID = f"UPID:{NODE}:00000001:00000001:6B035030:qmtunnel:300:other@pve!t1:"
GOOD = {
    "node": "localhost",
    "vmid": "300",
    "id": "AAAAAAAAAAAAAAAAAAAAAA",
    "storage": "local",
    "cputype": "known",
    "upid": UPID,
    "socket": "x",
    "ticket": "good",
    "volume": "local:300/vm-300-disk-0.raw",
    "path": "/",
    "conf": "memory: 512\n",
}
NEEDS = {
    "POST /nodes/{node}/qemu/{vmid}/mtunnel": [
        "VM.Allocate on /vms/{vmid}",
        "Sys.Incoming on /",
        "Datastore.AllocateSpace on /storage/{storage} for each of `storages`",
    ],
    "POST /nodes/{node}/qemu/{vmid}/mtunnelcheck": [
        "VM.Allocate on /vms/{vmid}",
        "Sys.Incoming on /",
        "Datastore.AllocateSpace on /storage/{storage} for each of `storages`",
    ],
    "GET /nodes/{node}/qemu/{vmid}/mtunnelwebsocket": [],
    "GET /nodes/{node}/qemu/{vmid}/mtunnelattach": [
        "VM.Allocate on /vms/{vmid} once more, of a flow that the token may attach to",
        "Sys.Incoming on / once more, of a flow that the token may attach to",
    ],
    "POST /nodes/{node}/qemu/{vmid}/mtunnelabandon": [],
    "POST /nodes/{node}/qemu/{vmid}/mtunnellate": ["VM.Allocate on /vms/{vmid}", "Sys.Incoming on /"],
    "GET /nodes/{node}/qemu/{vmid}/mtunneldigest": [],
    "GET /cluster/resources": ["VM.Audit on /vms/{vmid} for each guest that is shown"],
    "GET /nodes/{node}/storage": [
        "Datastore.Audit|Datastore.AllocateSpace on /storage/{storage} for each that is shown"
    ],
    "GET /nodes/{node}/storage/{storage}/content": ["Datastore.Audit|Datastore.AllocateSpace on /storage/{storage}"],
    "GET /nodes/{node}/certificates/info": [],
    "GET /cluster/qemu/custom-cpu-models/{cputype}": [
        "Mapping.Audit|Mapping.Use|Mapping.Modify on /mapping/cpu/{cputype}"
    ],
    "GET /cluster/status": ["Sys.Audit on /"],
    "GET /version": [],
    "GET /mtunnel/openapi": [],
    "GET /mtunnel/moves": ["Sys.Audit on /"],
    "GET /mtunnel/metrics": ["Sys.Audit on /"],
    "GET /access/permissions": [],
    "GET /nodes/{node}/network": [],
    "GET /nodes/{node}/tasks/{upid}/status": ["Sys.Audit on /nodes/{node}"],
    "GET /nodes/{node}/tasks/{upid}/log": ["Sys.Audit on /nodes/{node}"],
}


def shown(need):
    return f"{'|'.join(need.privileges)} on {need.path} {need.when}".rstrip()


class TableCase(ApiCase):
    def send(self, operation, sent, token="t1"):
        """Ask for an operation: what is in its path as it stands there, the rest as query or as a JSON body."""
        in_path = {name for name in sent if f"{{{name}}}" in operation.path}
        path = operation.path.format_map({name: quote(str(sent[name]), safe="") for name in in_path})
        rest = {name: value for name, value in sent.items() if name not in in_path}
        if operation.method == "POST":
            headers = ["Content-Type: application/json"]
            return self.ask("POST", path, headers=headers, body=json.dumps(rest).encode(), token=token)
        query = "&".join(f"{name}={quote(value)}" for name, value in rest.items())
        return self.ask("GET", f"{path}?{query}", token=token)

    def good(self, operation):
        schema = operation.schema.json_schema()
        return {name: GOOD[name] for name in schema.get("required", [])}


class SchemaTests(TableCase):
    def test_every_parameter_is_described(self):
        for operation in OPERATIONS:
            self.assertEqual(list(incomplete(operation.schema.json_schema())), [], operation.path)
            self.assertTrue(operation.summary)

    def test_what_is_in_the_path_is_required(self):
        for operation in OPERATIONS:
            in_path = {part[1:-1] for part in operation.path.split("/") if part.startswith("{")}
            self.assertLessEqual(in_path, set(operation.schema.json_schema().get("required", [])))

    def test_the_table_finds_each(self):
        for operation in OPERATIONS:
            path = f"/api2/json{operation.path}".encode()
            self.assertIs(find_operation(operation.method, split_path(path))[0], operation)

    def test_each_line_of_each_schema_holds(self):
        count = 0
        for operation in OPERATIONS:
            # A task of the token's own: where another's is asked for, the privilege is looked at first.
            good = {name: value.replace("other@", "mig@") for name, value in self.good(operation).items()}
            for violation in filter(self.sendable(operation), violations(operation.schema.json_schema())):
                response = self.send(operation, violation.applied(good))
                if response.line.startswith("HTTP/1.1 403 ") and self.stands_in_a_path(operation, violation):
                    continue
                self.assert_parameters(response, **{violation.name: violation.words})
                count += 1
        self.assertGreater(count, 60)

    def stands_in_a_path(self, operation, violation):
        """Privileges are looked at first, and on what is no access path nobody has any."""
        return any(f"{{{violation.name}}}" in need.path for need in operation.needs if not need.when)

    def sendable(self, operation):
        """Whether HTTP can carry it: a part of a path is a text that is there, in a query all are texts."""

        def check(violation):
            if f"{{{violation.name}}}" in operation.path:
                return isinstance(violation.value, str)
            return operation.method == "POST" or isinstance(violation.value, str | None)

        return check


class NeedTests(TableCase):
    def grant(self, *needs):
        """Give the token exactly these."""
        lines = ["user:mig@pve:1:0::::::", "token:mig@pve!t1:0:0::"]
        for number, (path, privilege) in enumerate(needs):
            lines += [f"role:r{number}:{privilege}:", f"acl:1:{path}:mig@pve:r{number}:"]
        (self.root / "user.cfg").write_text("\n".join(lines) + "\n")

    def paths(self, operation):
        values = {**GOOD, "node": NODE}
        return [(need.path.format_map(values), need.privileges) for need in operation.needs if not need.when]

    def test_the_list(self):
        found = {f"{each.method} {each.path}": [shown(need) for need in each.needs] for each in OPERATIONS}
        self.assertEqual(found, NEEDS)

    def test_each_is_needed(self):
        for operation in OPERATIONS:
            granted = []
            for path, privileges in self.paths(operation):
                self.grant(*granted)
                response = self.send(operation, self.good(operation))
                text = f"403 Permission check failed ({path}, {'|'.join(privileges)})"
                self.assertEqual(response.line, f"HTTP/1.1 {text}")
                granted.append((path, privileges[0]))

    def test_nothing_else_is(self):
        for operation in OPERATIONS:
            choices = max([len(privileges) for _, privileges in self.paths(operation)], default=1)
            for choice in range(choices):
                self.grant(*((path, privileges[choice]) for path, privileges in self.paths(operation)))
                self.assertNotIn(" 403 ", self.send(operation, self.good(operation)).line)
