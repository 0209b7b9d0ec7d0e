"""Cloud-init drives, made anew before each start of a VM from its config, by xorriso or genisoimage."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mtunnel_tx.backends.child import run
from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.process import plain_environ
from mtunnel_tx.errors import BackendFailed, NotFound, refuse
from mtunnel_tx.ports.storage import Report, Storage
from mtunnel_tx.pve.cloudinit import CloudSeed, cloud_drives, read_seed, seed_files
from mtunnel_tx.pve.drive import parse_drive
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.volume import parse_volume_id

MAKE_S = 60.0
SNIPPET_BYTES = 1 << 20
RESOLV_CONF = Path("/etc/resolv.conf")
_MAKERS = {"xorriso": ("xorriso", "-as", "genisoimage"), "genisoimage": ("genisoimage",)}


class CloudDrives:
    """Fills the cloud-init drives of VMs.

    Args: storage: knows where volumes are. folder: for temporary files, which hold passwords: mode 0700.
    """

    def __init__(self, reactor: Any, threads: ReactorThreads, storage: Storage, folder: Path) -> None:
        self._reactor = reactor
        self._threads = threads
        self._storage = storage
        self._folder = folder

    async def make(self, vmid: int, conf: GuestConfig, programs: frozenset[str], report: Report) -> None:
        """Write what the config says into the VM's cloud-init drives; nothing where it has none.

        Args: programs: those that this host has. report: told where a drive keeps its content.
        Raises: TunnelError: with the key of what cannot be made.
        """
        for key in cloud_drives(conf):
            maker = next((_MAKERS[name] for name in _MAKERS if name in programs), None)
            if maker is None:
                report(f"{key}: this host has neither xorriso nor genisoimage; the cloud-init drive stays as it is")
                continue
            await self._fill(key, parse_drive(key, conf.options[key]).volume, read_seed(conf, vmid), maker)

    async def _fill(self, key: str, volid: str, seed: CloudSeed, maker: tuple[str, ...]) -> None:
        size_bytes = await self._storage.size_bytes(volid)
        if size_bytes is None:
            raise NotFound(f"{key}: volume '{volid}' does not exist")
        if reason := await self._storage.refers_elsewhere(volid):
            raise refuse(key, f"'{volid}' cannot be used: {reason}")
        snippets = {part: await self._snippet(part, name) for part, name in seed.custom.items()}
        seed = await self._threads.run(_with_resolver, seed)
        with TemporaryDirectory(prefix="cloudinit-", dir=self._folder) as folder:
            image = Path(folder, "image")
            await self._threads.run(_write_files, Path(folder, "files"), seed_files(seed, snippets))
            argv = [
                *maker,
                "-quiet",
                "-iso-level",
                "3",
                "-R",
                "-J",
                "-V",
                seed.label,
                "-o",
                str(image),
                f"{folder}/files",
            ]
            await run(self._reactor, argv, plain_environ(), MAKE_S, name=maker[0])
            await self._threads.run(_pad, key, image, size_bytes)
            await self._copy(image, await self._storage.path(volid), volid)

    async def _copy(self, image: Path, path: str, volid: str) -> None:
        format = "qcow2" if volid.endswith(".qcow2") else "raw"
        argv = ["qemu-img", "convert", "-n", "-f", "raw", "-O", format, str(image), path]
        await run(self._reactor, argv, plain_environ(), MAKE_S, name="qemu-img convert")

    async def _snippet(self, part: str, text: str) -> str:
        """Read a snippet. Raises: TunnelError: `cicustom: …`: it is none, or cannot be read."""
        volume = parse_volume_id(text)
        if volume.storage not in self._storage.config():
            raise refuse("cicustom", f"{part}: storage '{volume.storage}' does not exist")
        if reason := await self._storage.refers_elsewhere(text):
            raise refuse("cicustom", f"{part}: '{text}' cannot be used: {reason}")
        return await self._threads.run(_read_snippet, Path(await self._storage.path(text)))


def _read_snippet(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(SNIPPET_BYTES + 1)
    except OSError as error:
        raise BackendFailed(f"cicustom: '{path}': {error.strerror}") from error
    if len(data) > SNIPPET_BYTES:
        raise BackendFailed(f"cicustom: '{path}' is longer than {SNIPPET_BYTES} bytes")
    return data.decode("utf-8", "surrogateescape")


def _with_resolver(seed: CloudSeed) -> CloudSeed:
    """Where the config says nothing about DNS, the guest gets what this host uses."""
    if seed.name_servers or seed.domains:
        return seed
    try:
        words = [line.split() for line in RESOLV_CONF.read_text("utf-8", "replace").splitlines()]
    except OSError:
        return seed
    servers = tuple(line[1] for line in words if len(line) > 1 and line[0] == "nameserver")
    domains = next((tuple(line[1:]) for line in words if line and line[0] in ("search", "domain")), ())
    return replace(seed, name_servers=servers, domains=domains)


def _write_files(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_bytes(text.encode("utf-8", "surrogateescape"))


def _pad(key: str, image: Path, size_bytes: int) -> None:
    """Make the image as long as its volume, so that nothing of an older one is left behind it."""
    needed = image.stat().st_size
    if needed > size_bytes:
        raise BackendFailed(f"{key}: the image needs {needed} bytes, its volume has {size_bytes}")
    os.truncate(image, size_bytes)
