"""Privileges and the built-in roles (formats.md section 1)."""

from __future__ import annotations

NO_ACCESS = "NoAccess"
ADMINISTRATOR = "Administrator"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_VM_USER = _words(
    "VM.Audit VM.Backup VM.Config.CDROM VM.Config.Cloudinit VM.Console VM.GuestAgent.Audit VM.GuestAgent.FileRead"
    " VM.GuestAgent.FileSystemMgmt VM.GuestAgent.FileWrite VM.PowerMgmt"
)
_VM_ADMIN = _VM_USER | _words(
    "VM.Allocate VM.Clone VM.Config.CPU VM.Config.Disk VM.Config.HWType VM.Config.Memory VM.Config.Network"
    " VM.Config.Options VM.GuestAgent.Unrestricted VM.Migrate VM.Replicate VM.Snapshot VM.Snapshot.Rollback"
)
_DATASTORE_USER = _words("Datastore.AllocateSpace Datastore.Audit")
_DATASTORE_ADMIN = _DATASTORE_USER | _words("Datastore.Allocate Datastore.AllocateTemplate")
_SDN_USER = _words("SDN.Audit SDN.Use")
_SDN_ADMIN = _SDN_USER | _words("SDN.Allocate")
_MAPPING_USER = _words("Mapping.Audit Mapping.Use")
_MAPPING_ADMIN = _MAPPING_USER | _words("Mapping.Modify")
_POOL_USER = _words("Pool.Audit")
_POOL_ADMIN = _POOL_USER | _words("Pool.Allocate")
_SYS_ADMIN = _words("Sys.Audit Sys.Console Sys.Syslog")
_USER_ADMIN = _words("Group.Allocate Realm.AllocateUser User.Modify")
_ADMIN = _VM_ADMIN | _DATASTORE_ADMIN | _SDN_ADMIN | _POOL_ADMIN | _SYS_ADMIN | _USER_ADMIN | _MAPPING_USER

ALL_PRIVILEGES = _ADMIN | _words(
    "Mapping.Modify Permissions.Modify Realm.Allocate Sys.AccessNetwork Sys.Incoming Sys.Modify Sys.PowerMgmt"
)

BUILTIN_ROLES: dict[str, frozenset[str]] = {
    NO_ACCESS: frozenset(),
    ADMINISTRATOR: ALL_PRIVILEGES,
    "PVEAdmin": _ADMIN,
    "PVEAuditor": _words("Datastore.Audit Mapping.Audit Pool.Audit SDN.Audit Sys.Audit VM.Audit VM.GuestAgent.Audit"),
    "PVEDatastoreAdmin": _DATASTORE_ADMIN,
    "PVEDatastoreUser": _DATASTORE_USER,
    "PVEMappingAdmin": _MAPPING_ADMIN,
    "PVEMappingUser": _MAPPING_USER,
    "PVEPoolAdmin": _POOL_ADMIN,
    "PVEPoolUser": _POOL_USER,
    "PVESDNAdmin": _SDN_ADMIN,
    "PVESDNUser": _SDN_USER,
    "PVESysAdmin": _SYS_ADMIN,
    "PVETemplateUser": _words("VM.Audit VM.Clone"),
    "PVEUserAdmin": _USER_ADMIN,
    "PVEVMAdmin": _VM_ADMIN,
    "PVEVMUser": _VM_USER,
}
