"""A VM that runs here, as far as a source asks: what QEMU says, and what it was told."""

from contextlib import asynccontextmanager
from types import SimpleNamespace

from mtunnel_tx.errors import BackendFailed, TimedOut


class FakeMachine:
    """links.Machines and links.Running of one VM; `deeds`: what it was told, in order.

    `dies`, `fails`, `late`: the deed at which QEMU ends, at which the migration fails and the VM runs on, or which
    takes too long.
    """

    def __init__(self, status="running", migration="none", mirrors=()):
        self.now = self.before = status
        self.memory = migration
        self.mirrored = list(mirrors)
        self.deeds = []
        self.is_on = status != "off"
        self.dies = self.fails = self.late = ""
        self.mirror_states, self.memory_states = [], []
        self.later_mirrors = []
        self.slowed = []
        self.is_sped_up = False
        self.told = lambda: None
        self.blocked = []
        self.memory_mib = 512
        self.opened = {"scsi0": ("/d/vm-100-disk-0.raw", 1048576), "virtio1": ("json:/d/vm-100-disk-1.qcow2", 209920)}
        self.may_split = self.is_split = self.breaks = False

    def running(self, _vmid):
        return self.is_on

    @asynccontextmanager
    async def attached(self, _vmid):
        yield self

    async def stop(self, _vmid):
        if self.is_on:
            self.deeds.append("end")
        self.is_on = False

    async def status(self):
        return self.now

    async def machine_type(self):
        return "pc-i440fx-7.2"

    async def blockers(self):
        return self.blocked

    async def disks(self):
        return self.opened

    async def memory_bytes(self):
        return self.memory_mib << 20

    def cpu(self):
        return None

    async def host_mtus(self):
        return {}

    def _do(self, deed):
        self.deeds.append(deed)
        if deed == self.dies:
            self.is_on = False
            raise BackendFailed("the connection to QEMU has ended")
        if deed == self.late:
            raise TimedOut("its disks were not level within 10 s")
        if deed == self.fails:
            self.memory = "failed"
            self.now = self.before
            raise BackendFailed("migration failed: Unable to write to socket: Broken pipe")

    async def start_mirror(self, drive, _socket, _export, *, limit_bytes_s, connected):
        connected()
        self.mirrored.append(drive)

    async def until_ready(self, told):
        for states in self.mirror_states:
            await told(states)
            self.told()
        self._do("mirror")

    async def mirrors(self):
        return self.later_mirrors.pop(0) if self.later_mirrors else []

    async def slow_down(self, drive, limit_bytes_s):
        self.slowed.append((drive, limit_bytes_s))

    async def start_migration(self, _socket, *, limit_bytes_s, downtime_ms, auto_converge, postcopy):
        self.before, self.memory = self.now, "active"
        self.may_split = postcopy
        self.limits = [(limit_bytes_s, downtime_ms, auto_converge)]

    async def limit(self, *, limit_bytes_s, downtime_ms):
        self.limits.append((limit_bytes_s, downtime_ms))

    async def until_switchover(self, told, *, limit_s):
        self.still_s = limit_s
        for state in self.memory_states:
            await told(state)
            self.told()
        self._do("memory")
        self.now, self.memory = "finish-migrate", "pre-switchover"

    async def switch_over(self, *, limit_s):
        self.switch_s = limit_s
        self._do("rest")
        self.now, self.memory = ("finish-migrate", "postcopy-active") if self.is_split else ("postmigrate", "completed")

    async def start_postcopy(self):
        assert self.may_split, "QEMU was not told"
        self.deeds.append("post-copy")
        self.now = "paused"
        self.is_split = True

    async def until_sent(self, told):
        await told(SimpleNamespace(transferred_bytes=1 << 20, remaining_bytes=3 << 20))
        if self.breaks:
            self.memory = "postcopy-paused"
            raise BackendFailed("post-copy was broken off")
        self.now, self.memory = "postmigrate", "completed"

    async def migration(self):
        if not self.is_on:
            raise BackendFailed("the connection to QEMU has ended")
        return self.memory

    async def cancel_migration(self):
        self.deeds.append("cancel")
        self.memory, self.now = "cancelled", "postmigrate" if self.is_split else self.before

    async def adopt_mirrors(self):
        self.deeds += [f"adopt {name}" for name in self.mirrored]

    async def complete_mirrors(self):
        self._do("level")

    async def speed_up(self):
        self.is_sped_up = True

    async def end_mirrors(self):
        self.mirrored.clear()

    async def run(self):
        self.deeds.append("run")
        self.now = "running"

    async def pause(self):
        self.deeds.append("pause")
        self.now = "paused"
