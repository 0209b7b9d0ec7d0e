"""A VM that runs here, as far as the end of its way out asks: what QEMU says, and what it was told."""

from contextlib import asynccontextmanager


class FakeMachine:
    """links.Machines and links.Running of one VM; `deeds`: what it was told, in order."""

    def __init__(self, status="running", migration="none", mirrors=()):
        self.now = status
        self.memory = migration
        self.mirrors = list(mirrors)
        self.deeds = []
        self.is_on = status != "off"

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

    async def migration(self):
        return self.memory

    async def cancel_migration(self):
        self.deeds.append("cancel")
        self.memory = "cancelled"

    async def adopt_mirrors(self):
        self.deeds += [f"adopt {name}" for name in self.mirrors]

    async def end_mirrors(self, *, force=False):
        assert force
        self.mirrors.clear()

    async def run(self):
        self.deeds.append("run")
        self.now = "running"

    async def pause(self):
        self.deeds.append("pause")
        self.now = "paused"
