"""Looks at both hosts before anything is changed, and names everything that stands in the way.

Nothing is made at the target: an mtunnel-tx makes its own checks, of another one its API is asked what it tells.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BadRequest, Forbidden, NotFound, TimedOut, TunnelError, Unauthenticated, WrongState
from mtunnel_tx.pve.findings import Findings, Severity, subject_of
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.source.inventory import SourceDisk, custom_cpu, find_disks, find_obstacles
from mtunnel_tx.source.journal import check_abandoned, find_departure
from mtunnel_tx.source.leftout import find_undroppable, without
from mtunnel_tx.source.measuring import Measuring, find_losses
from mtunnel_tx.source.order import Order, Plan, SourceWorld
from mtunnel_tx.source.owner import describe
from mtunnel_tx.source.qemu.differences import find_differences, why_other_memory
from mtunnel_tx.source.qemu.live import is_online, is_read_only
from mtunnel_tx.source.report import DiskPlace, DiskReport, Report, SidedFinding, estimate_s
from mtunnel_tx.source.rewriting import find_bridges, iter_bridges
from mtunnel_tx.source.target import (
    NotImplementedThere,
    TargetUnreachable,
    TooLongForTarget,
    is_ours,
    objects,
)
from mtunnel_tx.source.targetcheck import TargetCheck
from mtunnel_tx.source.targetrights import TargetRights
from mtunnel_tx.source.targetstorages import TargetStorages
from mtunnel_tx.source.tunnel import read_text
from mtunnel_tx.waiting import together

T = TypeVar("T")
AT_ONCE = 4
"""Disks that are measured at the same time; each may start programs."""


class Obstructed(WrongState):
    """Something stands in the way of a migration; `obstacles` has one sentence for each."""

    def __init__(self, report: Report) -> None:
        super().__init__("; ".join(report.obstacles))
        self.obstacles = report.obstacles
        self.report = report


class Survey:
    """One look at both hosts."""

    def __init__(self, order: Order, world: SourceWorld) -> None:
        self._order = order
        self._world = world
        self._here = Findings()
        self._there = Findings()
        self._unknown: list[str] = []
        self._destinations: Mapping[str, DiskPlace] = {}
        self._target: dict[str, str] = {}
        self._checked = False
        self._dropped: tuple[str, ...] = ()
        self._runs = False
        self._machine: str | None = None
        self._opened: Mapping[str, tuple[str, int]] | None = None
        self._disks: Sequence[SourceDisk] = ()
        self._is_silent = False

    async def plan(self, *, thorough: bool = False) -> tuple[Plan, Report]:
        """Check all that can be checked.

        Args: thorough: also ask a Proxmox target which bridges there are, which its tunnel tells in time as well.
        Raises: Obstructed: with everything that stands in the way; NotFound: there is no such VM here.
        """
        conf = self._world.guests.read(self._order.vmid)
        self._runs = self._world.running(self._order.vmid)
        self._dropped = self._find_dropped(conf)
        sent = without(conf, self._dropped)
        storages = TargetStorages(self._order, self._world, self._here, self._there)
        # Each side takes a while to answer: programs have to be started.
        await together(self._look_here(conf, sent), self._heard(self._meet(storages)))
        await self._heard(self._look_there(sent, storages, thorough=thorough))
        disks = self._disks
        self._hint(sent)
        report = self._report(sent, disks)
        if report.obstacles:
            raise Obstructed(report)
        node, repoid = self._target["node"], self._target["version"]
        plan = Plan(conf=conf, disks=tuple(disks), node=node, repoid=repoid, runs=self._runs, checked=self._checked)
        return plan, report

    # Here

    def _find_dropped(self, conf: GuestConfig) -> tuple[str, ...]:
        """The keys that are left out on request; what cannot be left out stands in the way."""
        kept = dict(find_undroppable(conf, self._order.drop, running=self._runs))
        for key, text in kept.items():
            self._here.add(subject_of(key), key, text)
        return tuple(key for key in self._order.drop if key not in kept)

    async def _look_here(self, conf: GuestConfig, sent: GuestConfig) -> None:
        order, running = self._order, self._runs
        self._look_for_journal()
        if reason := self._world.guests.why_unwritable():
            self._here.add("vm", "", reason)
        if running and not (order.online and self._world.machines):
            how = "it cannot be moved while it runs" if order.online else "give --online, or shut it down first"
            self._here.add("vm", "", f"VM {order.vmid} is running: {how}")
        if order.delete and conf.options.get("protection") == "1":
            text = f"VM {order.vmid} is protected against removal: leave --delete out, or its `protection`"
            self._here.add("key", "protection", text)
        for text in find_obstacles(order.vmid, sent):
            self._add_sentence(text, sent)
        found, obstacles = find_disks(order.vmid, sent, self._world.storage.config())
        for text in obstacles:
            self._add_sentence(text, sent)
        self._find_gaps(sent, found)
        for disk in found:
            if self._is_mirrored(conf, running, disk) and is_read_only(conf, disk):
                self._keep_disk(
                    disk, "it is read-only (ro=1), and cannot be copied while the VM runs: shut it down first"
                )
        await self._look_at_machine(conf)
        await self._measure(found, partial(self._is_mirrored, conf, running))
        for text in find_differences(conf, self._disks, self._opened) if self._opened is not None else ():
            self._add_sentence(text, sent)

    async def _look_at_machine(self, conf: GuestConfig) -> None:
        """What QEMU says of the VM that runs: its machine type, and what would keep it here."""
        vmid, machines = self._order.vmid, self._world.machines
        if machines is None or not self._runs:
            return
        try:
            async with machines.attached(vmid) as running:
                self._machine = await running.machine_type()
                blockers = await running.blockers() if self._order.online else ()
                self._opened = await running.disks() if self._order.online else None
                memory_bytes = await running.memory_bytes() if self._order.online else None
        except TunnelError as error:
            self._here.add("machine", "", error.text)
            return
        for reason in blockers:
            self._here.add("vm", "", f"VM {vmid} cannot move while it runs: {clean(reason)}")
        if memory_bytes is not None and (other := why_other_memory(conf, memory_bytes)):
            self._here.add("key", "memory", other)

    async def _measure(self, found: Sequence[SourceDisk], mirrored: Callable[[SourceDisk], bool]) -> None:
        """Some at a time; what keeps them here is told in their order."""
        kept: dict[str, str] = {}
        measuring = Measuring(self._world.storage, mirrored, lambda disk, reason: kept.update({disk.label: reason}))
        measured: dict[str, SourceDisk | None] = {}
        waiting = iter(found)

        async def measure() -> None:
            for disk in waiting:
                measured[disk.label] = await measuring.measure(disk)

        await together(*(measure() for _ in range(AT_ONCE)))
        for disk in found:
            if disk.label in kept:
                self._keep_disk(disk, kept[disk.label])
        self._disks = tuple(each for disk in found if (each := measured[disk.label]) is not None)

    def _is_mirrored(self, conf: GuestConfig, running: bool, disk: SourceDisk) -> bool:
        return running and is_online(conf, disk)

    def _keep_disk(self, disk: SourceDisk, reason: str) -> None:
        self._here.add("disk", disk.label, f"{disk.label}: {reason}")

    def _add_sentence(self, text: str, conf: GuestConfig) -> None:
        """One that begins with a key of the config is about that."""
        start = text.partition(":")[0]
        key = start if start in conf.options else ""
        self._here.add(subject_of(key), key, text)

    def _look_for_journal(self) -> None:
        """What an earlier program left; before a migration it was settled."""
        try:
            departure = find_departure(self._world, self._order.vmid)
            if departure is not None:
                check_abandoned(self._world, departure)
                vmid = departure.vmid
                text = f"VM {vmid} {describe(departure)}; first run 'mtunnel settle {vmid}'"
                self._here.add("vm", "", text)
            elif reason := self._world.journal.why_taken(self._order.vmid):
                self._here.add("vm", "", reason)
        except WrongState as error:
            self._here.add("vm", "", error.text)

    def _find_gaps(self, conf: GuestConfig, disks: Sequence[SourceDisk]) -> None:
        """What the maps leave out."""
        storages = [disk.volid.storage for disk in disks]
        storages += [conf.options["vmstatestorage"]] if "vmstatestorage" in conf.options else []
        for name in dict.fromkeys(storages):
            self._ask_map("storage", name, self._order.storages.target)
        for name in find_bridges(conf):
            self._ask_map("bridge", name, self._order.bridge)

    def _ask_map(self, what: str, name: str, ask: Callable[[str], str]) -> None:
        try:
            ask(name)
        except BadRequest as error:
            self._here.add(what, name, f"{what} '{name}': {error.text}")

    # There

    async def _heard(self, questions: Coroutine[Any, Any, None]) -> None:
        """Where nobody can answer, more questions make no sense."""
        if self._is_silent:
            questions.close()
            return
        try:
            await questions
        except (Unauthenticated, TargetUnreachable, TimedOut) as error:
            self._is_silent = True
            self._there.add("vm", "", error.text)

    async def _meet(self, storages: TargetStorages) -> None:
        """Who the target is, and its storages. With a wrong token only one question is asked."""
        self._target["node"] = await self._ask(self._find_node(), "")

        async def find_repoid() -> None:
            self._target["version"] = await self._ask(self._find_repoid(), "")

        await together(find_repoid(), self._ask(storages.fetch(), None))

    async def _look_there(self, conf: GuestConfig, storages: TargetStorages, *, thorough: bool) -> None:
        """What becomes of the disks there, and what stands in the way."""
        node, repoid = self._target["node"], self._target["version"]
        fitted = storages.fit(self._disks)
        for disk in fitted if not self._order.drop_snapshots else ():
            for reason in find_losses(disk):
                self._keep_disk(disk, reason)
        if is_ours(repoid) and node and await self._ask(self._have_it_checked(node, conf, fitted), default=False):
            self._checked = True
        else:
            await self._look_from_here(conf, fitted, storages, thorough=thorough)
            if self._runs and self._order.patience.may_split:
                self._there.add(
                    "vm", "", "--on-timeout postcopy: only an mtunnel-tx that makes checks can take such a VM"
                )
        self._disks = tuple(fitted)

    async def _have_it_checked(self, node: str, conf: GuestConfig, disks: Sequence[SourceDisk]) -> bool:
        """Returns: whether the target has looked; an older one cannot, and a token that may do little is refused."""
        check = TargetCheck(self._order, self._world, self._there)
        try:
            self._destinations = await check.ask(node, conf, disks, self._machine)
        except NotImplementedThere:
            self._unknown.append("an older mtunnel-tx makes no checks before a move")
            return False
        except TooLongForTarget:
            self._unknown.append("the config is too long to be checked by the target before a move")
            for text in check.find_overlong(conf):
                self._there.add("vm", "", text)
            return False
        except Forbidden as error:
            self._there.add("vm", "", error.text)
            return False
        return True

    async def _look_from_here(
        self, conf: GuestConfig, disks: Sequence[SourceDisk], storages: TargetStorages, *, thorough: bool
    ) -> None:
        """What the API of a target tells that makes no checks."""
        taken = await self._ask(self._check_vmid(), default=False)
        if storages.is_listed:
            checked = storages.check(disks, self._target["version"], vmid_taken=taken)
            self._destinations = await self._ask(checked, {})
        await self._ask(self._check_cpu(conf), None)
        rights = TargetRights(self._order, self._world, self._there, conf)
        if not await self._ask(rights.check(disks), default=False):
            self._unknown.append("what the token may do")
        if thorough and not await self._ask(rights.check_bridges(self._target["node"]), default=False):
            self._unknown.append("which bridges there are")
        self._unknown.append("whether its QEMU can run this machine, CPU and memory")

    async def _ask(self, question: Coroutine[Any, Any, T], default: T) -> T:
        """A refusal is an obstacle like others; only where nobody can answer, more questions make no sense."""
        try:
            return await question
        except (Unauthenticated, TargetUnreachable, TimedOut):
            raise
        except TunnelError as error:
            self._there.add("vm", "", error.text)
            return default

    async def _find_node(self) -> str:
        for entry in objects(await self._world.target.get("cluster", "status")):
            if entry.get("type") == "node" and entry.get("local") in (1, True, "1"):
                return read_text(entry, "name")
        raise NotFound("its cluster status names no local node")

    async def _find_repoid(self) -> str:
        version = await self._world.target.get("version")
        return str(version.get("repoid", "")) if isinstance(version, dict) else ""

    async def _check_vmid(self) -> bool:
        """Returns: whether there is a guest of this VMID."""
        vmid, taken = self._order.target_vmid, False
        for entry in objects(await self._world.target.get("cluster", "resources", type="vm")):
            if str(entry.get("vmid")) == str(vmid):
                self._there.add("vm", "", f"VM {vmid} already exists on node '{clean(str(entry.get('node')))}'")
                taken = True
        return taken

    async def _check_cpu(self, conf: GuestConfig) -> None:
        name = custom_cpu(conf)
        if name is not None:
            await self._world.target.get("cluster", "qemu", "custom-cpu-models", name)

    # What was found

    def _hint(self, conf: GuestConfig) -> None:
        """Say of a key that the target does not take how the VM can be moved without it."""
        running = self._runs
        told, self._there = self._there, Findings()
        for found in told:
            text, key = found.text, found.name
            is_refused = found.severity is Severity.REFUSE and found.about == "key" and key in conf.options
            if is_refused and not list(find_undroppable(conf, [key], running=running)):
                text = f"{text}; --drop {key} leaves it out"
            self._there.add(found.about, key, text, found.severity)

    def _report(self, conf: GuestConfig, disks: Sequence[SourceDisk]) -> Report:
        order = self._order
        nets = {key: (here, here and order.bridge_or_same(here)) for key, here in iter_bridges(conf)}
        return Report(
            vmid=order.vmid,
            target={"host": self._world.target.host, "vmid": order.target_vmid, **self._target},
            online=order.online,
            delete=order.delete,
            disks=tuple(self._report_disk(disk) for disk in disks),
            nets=nets,
            dropped=self._dropped,
            findings=tuple(self._sided()),
            unknown=tuple(self._unknown),
        )

    def _report_disk(self, disk: SourceDisk) -> DiskReport:
        seconds = estimate_s(disk, self._order.bwlimit_kib_s)
        return DiskReport(disk=disk, destination=self._destinations.get(disk.label), seconds=seconds)

    def _sided(self) -> Iterator[SidedFinding]:
        """What was found about a key here is not told again of the target: it follows from that."""
        known = {found.name for found in self._here if found.name and found.severity is Severity.REFUSE}
        yield from (SidedFinding(side="source", finding=found) for found in self._here)
        yield from (SidedFinding(side="target", finding=found) for found in self._there if found.name not in known)
