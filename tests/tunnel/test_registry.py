from __future__ import annotations

from twisted.internet.defer import Deferred

from mtunnel_tx.errors import InvalidParameters, NotFound, PermissionDenied, TunnelError, Unauthenticated, WrongState
from mtunnel_tx.ports.guests import GuestEntry
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.tunnel.services import TunnelLimits
from mtunnel_tx.wire.socketkinds import MEMORY
from mtunnel_tx.wire.ticket import make_ticket
from tests.fakes import TOKEN, FakeStream
from tests.tunnel.case import DISK, TunnelCase

SOCKET = "/run/qemu-server/100.mtunnel"


class OpenTests(TunnelCase):
    def test_claim_is_a_journal_and_then_a_locked_empty_config(self) -> None:
        opened = self.open()
        self.assertEqual(self.events, ["journal claim", "create config"])
        self.assertEqual(self.fake.guests.configs[100].options, {"lock": "create"})
        self.assertEqual(opened.socket, SOCKET)
        self.assertEqual(opened.upid, self.task.upid)

    def _refused(self, kind: type[TunnelError], storages: tuple[str, ...] = (), bridges: tuple[str, ...] = ()) -> str:
        error = self.fails(self.registry.open(100, TOKEN, storages, bridges), kind)
        self.assertEqual(self.events, [])
        return error.line

    def test_storages_are_checked_in_proxmox_order(self) -> None:
        self.assertEqual(self._refused(TunnelError, ("local", "nosuch")), "storage 'nosuch' does not exist")
        self.assertEqual(self._refused(TunnelError, ("off",)), "storage 'off' is disabled")
        text = "storage 'othernode' is not available on node 'pvetest'"
        self.assertEqual(self._refused(TunnelError, ("othernode",)), text)
        self.assertEqual(self._refused(TunnelError, ("nodisks",)), "storage 'nodisks' does not support vm images")

    def test_storage_needs_a_privilege(self) -> None:
        self.fake.access.users = self.fake.access.users.replace("Administrator", "PVEVMAdmin")
        text = "403 Permission check failed (/storage/local, Datastore.AllocateSpace)"
        self.assertEqual(self._refused(PermissionDenied, ("local",)), text)

    def test_missing_bridge(self) -> None:
        self.assertEqual(self._refused(TunnelError, (), ("vmbr0", "vmbr77")), "bridge 'vmbr77' does not exist")

    def _taken(self) -> str:
        return self.fails(self.registry.open(100, TOKEN, (), ()), InvalidParameters).errors["vmid"]

    def test_taken_vmid(self) -> None:
        self.fake.guests.set(100, "name: here")
        text = "unable to create empty VM config - VM 100 already exists on node 'pvetest'\n"
        self.assertEqual(self._taken(), text)

    def test_vmid_taken_by_a_container_elsewhere(self) -> None:
        self.fake.guests.others = [GuestEntry(vmid=100, node="other", kind="lxc", name="ct")]
        self.assertEqual(self._taken(), "unable to create empty VM config - CT 100 already exists on node 'other'\n")

    def test_two_tunnels_for_one_vmid(self) -> None:
        self.open()
        self.assertIn("VM 100 already exists", self._taken())
        self.assertIn(100, self.fake.guests.configs)

    def test_a_standing_journal_is_never_overwritten(self) -> None:
        self.fake.journal.records[100] = [{"do": "claim", "token": "x", "version": 1}]
        self.assertEqual(self._taken(), "VM 100 waits for 'mtunnel settle 100'")
        self.assertEqual(len(self.fake.journal.records[100]), 1)
        self.assertEqual(self.events, [])

    def test_a_failing_claim_leaves_nothing(self) -> None:
        async def refuse(*_: object) -> None:
            raise WrongState("no space left on device")

        self.fake.guests.create = refuse  # type: ignore[method-assign]
        self.assertIn("no space left", self._taken())
        self.assertEqual(self.fake.journal.records, {})

    def test_limits(self) -> None:
        limits = TunnelLimits(tunnels=2, tunnels_per_token=1)
        object.__setattr__(self.fake.services, "limits", limits)
        self.open()
        text = self.fails(self.registry.open(101, TOKEN, (), ()), WrongState).text
        self.assertEqual(text, "no more than 1 tunnels at once for one token")

    def test_drain_takes_no_new_tunnels(self) -> None:
        drained: list[int] = []
        self.connect()
        self.registry.drain(lambda: drained.append(1))
        self.fails(self.registry.open(101, TOKEN, (), ()), WrongState)
        self.assertEqual(drained, [])
        self.line.disconnected()
        self.assertEqual(drained, [1])

    def test_draining_an_idle_daemon(self) -> None:
        drained: list[int] = []
        self.registry.drain(lambda: drained.append(1))
        self.assertEqual(drained, [1])


class RouteTests(TunnelCase):
    def _ticket(self, path: str = SOCKET, user: str = TOKEN) -> str:
        return make_ticket(self.fake.services.ticket_key, user, path, self.fake.clock.seconds())

    def test_the_opening_ticket_leads_to_the_command_socket(self) -> None:
        opened = self.open()
        route = self.registry.route(100, opened.socket, TOKEN, opened.ticket)
        self.assertEqual(route.file.name, "100.mtunnel")
        self.assertEqual(route.vmid, 100)

    def test_path_is_normalised(self) -> None:
        self.open()
        path = "//run//qemu-server/100.mtunnel"
        self.assertEqual(self.registry.route(100, path, TOKEN, self._ticket(path)).file.name, "100.mtunnel")

    def test_no_config_comes_before_the_ticket(self) -> None:
        with self.assertRaises(NotFound):
            self.registry.route(399, SOCKET, TOKEN, "garbage")

    def test_refusals(self) -> None:
        self.open()
        self.open(101)
        good = self._ticket()
        other = "/run/qemu-server/100.migrate"
        for vmid, path, token, ticket in (
            (100, SOCKET, TOKEN, "garbage"),
            (100, SOCKET, "else@pve!t1", good),
            (100, SOCKET, "else@pve!t1", self._ticket(user="else@pve!t1")),
            (100, other, TOKEN, good),
            (100, other, TOKEN, self._ticket(other)),
            (100, "/etc/passwd", TOKEN, self._ticket("/etc/passwd")),
            (101, SOCKET, TOKEN, good),
        ):
            with self.assertRaises(Unauthenticated) as caught:
                self.registry.route(vmid, path, token, ticket)
            self.assertEqual(caught.exception.text, "permission denied - invalid PVETUNNEL ticket")

    def test_one_command_connection(self) -> None:
        opened = self.open()
        first = self.registry.route(100, opened.socket, TOKEN, opened.ticket)
        second = self.registry.route(100, opened.socket, TOKEN, opened.ticket)
        first.opened(FakeStream())
        with self.assertRaises(WrongState):
            second.opened(FakeStream())
        with self.assertRaises(WrongState):
            self.registry.route(100, opened.socket, TOKEN, opened.ticket).check_room()
        self.now(first.closed(orderly=True))
        second.opened(FakeStream())

    def test_only_a_parked_tunnel_is_abandoned_and_only_by_its_token(self) -> None:
        opened = self.open()
        route = self.registry.route(100, opened.socket, TOKEN, opened.ticket)
        route.opened(FakeStream())
        for vmid, token, upid in ((101, TOKEN, opened.upid), (100, "else@pve!t1", opened.upid), (100, TOKEN, "UPID:x")):
            self.failureResultOf(Deferred.fromCoroutine(self.registry.abandon(vmid, token, upid)), NotFound)
        self.failureResultOf(Deferred.fromCoroutine(self.registry.abandon(100, TOKEN, opened.upid)), WrongState)
        route.parked("reset", 0.0)
        self.assertEqual([flow.socket for flow in self.registry.live()[0].parked], ["commands"])
        work = Deferred.fromCoroutine(self.registry.abandon(100, TOKEN, opened.upid))
        self.now(route.closed(orderly=False))
        self.fake.clock.advance(10)
        self.successResultOf(work)
        self.assertEqual(self.registry.live(), [])

    def test_a_loss_is_told_once(self) -> None:
        """Where the flow was parked before this daemon came, it is told that it still is."""
        opened = self.open()
        route = self.registry.route(100, opened.socket, TOKEN, opened.ticket)
        route.opened(FakeStream())
        for waited_s in (0.0, 4.25):
            route.parked("reset", waited_s)
            route.resumed(5.0)
        lines = [line for line in self.task.lines if line.startswith("commands: ")]
        self.assertEqual(lines[0], "commands: connection lost (reset), waiting for another one")
        self.assertEqual(lines[2], "commands: without a connection for 4.2 s (reset), waiting for another one")

    def test_streams_are_bounded_and_counted(self) -> None:
        object.__setattr__(self.fake.services, "limits", TunnelLimits(streams_per_tunnel=1))
        opened = self.open()
        self.registry.route(100, opened.socket, TOKEN, opened.ticket).opened(FakeStream())
        session = self.registry._sessions[100]
        session.tunnel.sockets.add(MEMORY)
        path = "/run/qemu-server/100.migrate"
        with self.assertRaises(WrongState):
            self.registry.route(100, path, TOKEN, self._ticket(path)).check_room()
        status = self.registry.live()[0]
        self.assertEqual((status.streams, status.bytes_in, status.bytes_out), (1, 10, 20))


class EndTests(TunnelCase):
    def test_nobody_comes(self) -> None:
        self.open()
        self.fake.clock.advance(299)
        self.assertIsNone(self.task.status)
        self.fake.clock.advance(2)
        self.assertEqual(self.task.status, "Exiting mtunnel")
        self.assertEqual((self.fake.guests.configs, self.fake.journal.records), ({}, {}))
        self.assertEqual(self.registry.live(), [])

    def test_a_tunnel_in_use_does_not_expire(self) -> None:
        self.connect()
        self.fake.clock.advance(3600)
        self.assertTrue(self.ask(cmd="version")["success"])

    def test_only_one_connection(self) -> None:
        self.assertFalse(self.connect().connected())

    def test_stop_ends_all_tunnels_and_their_streams(self) -> None:
        opened = self.open()
        stream = FakeStream()
        route = self.registry.route(100, opened.socket, TOKEN, opened.ticket)
        route.opened(stream)
        stopping = Deferred.fromCoroutine(self.registry.stop())
        self.fake.clock.advance(4)
        self.assertFalse(stream.aborted, "the last replies are on their way")
        self.fake.clock.advance(2)
        self.assertTrue(stream.aborted)
        self.now(route.closed(orderly=False))
        self.successResultOf(stopping)
        self.assertEqual((self.fake.guests.configs, self.registry.live()), ({}, []))

    def test_nothing_is_opened_while_others_end(self) -> None:
        opened = self.open()
        route = self.registry.route(100, opened.socket, TOKEN, opened.ticket)
        route.opened(FakeStream())
        stopping = Deferred.fromCoroutine(self.registry.stop())
        text = self.fails(self.registry.open(101, TOKEN, (), ()), WrongState).text
        self.assertEqual(text, "this daemon is being stopped and takes no new tunnels")
        self.now(route.closed(orderly=False))
        self.successResultOf(stopping)
        self.assertEqual(self.fake.journal.records, {})

    def test_nothing_is_settled_while_others_end(self) -> None:
        opened = self.open()
        route = self.registry.route(100, opened.socket, TOKEN, opened.ticket)
        route.opened(FakeStream())
        stopping = Deferred.fromCoroutine(self.registry.stop())
        text = self.fails(self.registry.settle(101, discard=True), WrongState).text
        self.assertEqual(text, "this daemon is being stopped")
        self.now(route.closed(orderly=False))
        self.successResultOf(stopping)

    def test_stop_ends_what_is_just_being_opened(self) -> None:
        create, created = self.fake.guests.create, Deferred[None]()

        async def slowly(vmid: int, conf: GuestConfig) -> None:
            await created
            await create(vmid, conf)

        self.fake.guests.create = slowly  # type: ignore[method-assign]
        opening = Deferred.fromCoroutine(self.registry.open(100, TOKEN, (), ()))
        stopping = Deferred.fromCoroutine(self.registry.stop())
        self.assertNoResult(stopping)
        created.callback(None)
        self.successResultOf(opening)
        self.successResultOf(stopping)
        self.assertEqual((self.fake.guests.configs, self.fake.journal.records), ({}, {}))

    def test_after_quit_the_source_has_a_while_to_leave(self) -> None:
        self.connect()
        self.ask(cmd="quit", cleanup=1)
        self.fake.clock.advance(61)
        self.assertEqual(self.task.status, "OK")
        self.assertEqual(self.registry.live(), [])

    def test_digest_of_own_volumes_only(self) -> None:
        self.connect()
        self.fails(self.registry.digest(100, TOKEN, "local:100/vm-100-disk-0.raw"), NotFound)
        volid = self.ask(**DISK)["volid"]
        self.assertEqual(len(self.now(self.registry.digest(100, TOKEN, volid))), 64)
        self.fails(self.registry.digest(100, "else@pve!t1", volid), NotFound)
