"""storage.cfg and datacenter.cfg (formats.md sections 4 and 5)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mtunnel_tx.checks import STORAGE_ID, Warn, ignore, split_list
from mtunnel_tx.pve.sections import Section, parse_sections
from mtunnel_tx.pve.storagetypes import STORAGE_TYPES, Layout, StorageType

_ID = re.compile(STORAGE_ID)
_DATACENTER_LINE = re.compile(r"([a-z][a-z0-9_-]*):\s*(.*\S)\s*")
CONTENT_TYPES = ("images", "rootdir", "iso", "vztmpl", "backup", "snippets", "import")
"""What a storage may hold, in the order in which it is listed."""
_BOOLEANS = frozenset({"disable", "shared", "mkdir", "create-base-path", "create-subdirs", "snapshot-as-volume-chain"})
_DIR_KEYS = _BOOLEANS | {
    "path",
    "content",
    "content-dirs",
    "nodes",
    "format",
    "is_mountpoint",
    "bwlimit",
    "preallocation",
    "prune-backups",
    "max-protected-backups",
}
_FOLDERS = {
    "images": "images",
    "rootdir": "private",
    "vztmpl": "template/cache",
    "iso": "template/iso",
    "backup": "dump",
    "snippets": "snippets",
    "import": "import",
}


@dataclass(frozen=True, slots=True)
class StorageEntry:
    """One storage; `options` as written, values checked."""

    id: str
    type: str
    options: Mapping[str, str]

    @property
    def kind(self) -> StorageType:
        """The properties of its type."""
        return STORAGE_TYPES.get(self.type, StorageType())

    @property
    def content(self) -> frozenset[str]:
        """What it may hold: `images`, `iso`, …; `none` is nothing."""
        return frozenset(CONTENT_TYPES).intersection(split_list(self.options.get("content", self.kind.content)))

    @property
    def enabled(self) -> bool:
        return self.options.get("disable") != "1"

    @property
    def nodes(self) -> frozenset[str] | None:
        """The nodes that have it; None for all."""
        names = split_list(self.options.get("nodes", ""))
        return frozenset(names) or None

    @property
    def has_files(self) -> bool:
        """Whether its volumes are below a folder; then `parse_dir_volume` reads their names."""
        return self.kind.layout is not Layout.BLOCKS

    @property
    def path(self) -> str | None:
        """Its folder, without a slash at the end; None for a storage that has no files."""
        default = f"/mnt/pve/{self.id}" if self.kind.mounted else None
        path = self.options.get("path", default)
        return path.rstrip("/") or "/" if path else None

    @property
    def valid_formats(self) -> tuple[str, ...]:
        if self.type == "lvm" and self.options.get("snapshot-as-volume-chain") == "1":
            return ("raw", "qcow2")
        return self.kind.formats

    @property
    def default_format(self) -> str:
        chosen = self.options.get("format")
        return chosen if chosen in self.valid_formats else self.valid_formats[0]

    @property
    def bwlimit(self) -> str | None:
        """The limit string, KiB/s by operation; None: no limit of its own."""
        return self.options.get("bwlimit")

    @property
    def shared(self) -> bool:
        return self.kind.shared or self.options.get("shared") == "1"

    def on_node(self, node: str) -> bool:
        """Whether this node has it."""
        return self.nodes is None or node in self.nodes

    def folder(self, content: str) -> str | None:
        """The folder for one kind of content, `content-dirs` obeyed; None where there are no files."""
        if self.path is None or content not in _FOLDERS:
            return None
        chosen = dict(item.split("=", 1) for item in split_list(self.options.get("content-dirs", "")) if "=" in item)
        return f"{self.path.rstrip('/')}/{chosen.get(content, _FOLDERS[content]).strip('/')}"


def parse_storage_config(text: str, warn: Warn = ignore) -> dict[str, StorageEntry]:
    """Ids to entries, in the order of the file.

    Args: warn: told of everything that is skipped, as `line N: REASON`.
    """
    entries: dict[str, StorageEntry] = {}
    for section in parse_sections(text, warn, types=STORAGE_TYPES):
        reason = _reject(section)
        if reason:
            warn(f"line {section.line}: storage '{section.id}' skipped: {reason}")
            continue
        if section.id in entries:
            warn(f"line {section.line}: storage '{section.id}' again, the former one is dropped")
        options = _check_options(section, warn)
        entries[section.id] = StorageEntry(section.id, section.type, MappingProxyType(options))
    return entries


def _reject(section: Section) -> str | None:
    if not _ID.fullmatch(section.id):
        return "not a storage ID"
    if section.type not in STORAGE_TYPES:
        return f"unknown type '{section.type}'"
    if section.type == "dir" and not section.options.get("path", "").startswith("/"):
        return "no absolute path"
    return None


def _check_options(section: Section, warn: Warn) -> dict[str, str]:
    kept = {}
    for key, value in section.options.items():
        reason = _object(section.type, key, value)
        if reason:
            warn(f"line {section.line}: storage '{section.id}': '{key}' skipped: {reason}")
        else:
            kept[key] = value
    return kept


def _object(type: str, key: str, value: str) -> str | None:
    """What is wrong with an option; None: nothing. Keys of types other than `dir` are left to Proxmox."""
    if type == "dir" and key not in _DIR_KEYS:
        return "unknown"
    if key in _BOOLEANS and value not in ("0", "1"):
        return "neither 0 nor 1"
    if key == "format" and value not in STORAGE_TYPES["dir"].formats:
        return "unknown format"
    return None


def parse_datacenter_config(text: str) -> dict[str, str]:
    """Lines `key: value`; comments and what cannot be read are skipped."""
    matches = (_DATACENTER_LINE.fullmatch(line) for line in text.split("\n"))
    return {match[1]: match[2] for match in matches if match}
