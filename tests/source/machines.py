"""A VM that runs here, as far as a source asks: what QEMU says, and what it was told."""

from contextlib import asynccontextmanager

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
        self.told = lambda: None

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

    async def start_mirror(self, drive, _socket, _export, *, limit_bytes_s):
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

    async def start_migration(self, _socket, *, limit_bytes_s, downtime_ms, auto_converge):
        self.before, self.memory = self.now, "active"
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
        self.now, self.memory = "postmigrate", "completed"

    async def migration(self):
        return self.memory

    async def cancel_migration(self):
        self.deeds.append("cancel")
        self.memory, self.now = "cancelled", self.before

    async def adopt_mirrors(self):
        self.deeds += [f"adopt {name}" for name in self.mirrored]

    async def complete_mirrors(self):
        self._do("level")

    async def end_mirrors(self):
        self.mirrored.clear()

    async def run(self):
        self.deeds.append("run")
        self.now = "running"

    async def pause(self):
        self.deeds.append("pause")
        self.now = "paused"
