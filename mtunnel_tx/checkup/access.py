"""Users and tokens: whether anybody may send VMs here, and what keeps somebody from it."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from mtunnel_tx.backends.access import token_file, user_file
from mtunnel_tx.backends.files import read_text
from mtunnel_tx.checkup.finding import Finding, fine, problem, warning
from mtunnel_tx.config import Settings
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.tokens import parse_token_config
from mtunnel_tx.pve.users import Token, User, UserConfig, parse_user_config

_ADD = "mtunnel token add 'mig@pve!t1' --role Administrator"
_NEEDED = (("/", "Sys.Incoming"), ("/vms/100", "VM.Allocate"))


def check_access(settings: Settings, now_s: float) -> Iterator[Finding]:
    """Both files, line by line, then each token. Args: now_s: seconds since the epoch."""
    skipped: list[str] = []
    try:
        users = parse_user_config(read_text(user_file(settings.pve_dir)) or "", skipped.append)
        secrets = parse_token_config(read_text(token_file(settings.pve_dir)) or "", skipped.append)
    except OSError as error:
        yield problem("users", f"{error.filename}: {error.strerror}", "run this as the daemon's user")
        return
    for reason in skipped:
        yield problem("users", reason, f"edit {user_file(settings.pve_dir)}")
    yield from _modes(settings)
    tokens = [
        (f"{name}!{part}", user, token) for name, user in users.users.items() for part, token in user.tokens.items()
    ]
    for name, user, token in sorted(tokens, key=lambda entry: entry[0]):
        yield _token(users, secrets, name, user, token, now_s)
    if not tokens and settings.profile == "standalone":
        yield problem("tokens", "there is none: nobody can send a VM here", _ADD)


def _modes(settings: Settings) -> Iterator[Finding]:
    """On a Proxmox node the cluster's file system sets modes by itself."""
    file = token_file(settings.pve_dir)
    if settings.profile == "standalone" and file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o077:
        yield problem("tokens", f"{file} can be read by others", f"chmod 600 {file}")


def _token(users: UserConfig, secrets: dict[str, str], name: str, user: User, token: Token, now_s: float) -> Finding:
    subject = f"token {name}"
    if name not in secrets:
        return problem(subject, "it has no secret", f"mtunnel token remove '{name}', then add it again")
    if not user.enabled:
        return warning(subject, "its user is disabled")
    if any(0 < expires_s < now_s for expires_s in (user.expires_s, token.expires_s)):
        return warning(subject, "it has expired", f"mtunnel token remove '{name}'")
    rights = Rights(users, name)
    missing = [f"{privilege} on {path}" for path, privilege in _NEEDED if not rights.has(path, privilege)]
    if missing:
        remedy = f"mtunnel acl add '{name}' --role Administrator --path /"
        return warning(subject, f"it cannot send VMs here: it lacks {', '.join(missing)}", remedy)
    return fine(subject, "may send VMs here")
