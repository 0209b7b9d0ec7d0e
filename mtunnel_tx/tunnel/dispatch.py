"""The control path: one line in, one reply out, from top to bottom."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from twisted.logger import Logger

from mtunnel_tx.errors import TunnelError, WrongState
from mtunnel_tx.ports.events import CommandAnswered
from mtunnel_tx.tunnel.command import Command, Lock, Until
from mtunnel_tx.tunnel.tunnel import Guest, State, Tunnel
from mtunnel_tx.wire.lines import command_name, encode_failure, encode_ok, handler_failure, parse_request

log = Logger()


async def answer(tunnel: Tunnel, line: bytes) -> bytes:
    """Do what a line asks for.

    Args: line: one command line, without its LF.
    Returns: the reply, one JSON object without LF. Never raises.
    Source: protocol.md section 4.
    """
    try:
        request = parse_request(line)
        command = admit(tunnel, command_name(request))
    except TunnelError as error:
        return encode_failure(error.text)
    began_s = tunnel.services.clock.seconds()
    failure = ""
    try:
        reply = encode_ok(await _do(tunnel, command, request))
    except TunnelError as error:
        failure = handler_failure(command.name, error)
        reply = encode_failure(failure)
    duration_s = tunnel.services.clock.seconds() - began_s
    tunnel.tell(CommandAnswered(tunnel=tunnel.facts, name=command.name, failure=failure, duration_s=duration_s))
    return reply


async def _do(tunnel: Tunnel, command: Command, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Raises: TunnelError: why it failed; a bug is logged here, and the peer learns nothing of it."""
    try:
        tunnel.check_token()
        check_power(tunnel, command)
        arguments = command.read(request)
        async with opened(tunnel, command.lock) as guest:
            return await command.handler(guest, arguments)
    except TunnelError:
        raise
    except Exception as error:
        log.failure("unexpected failure in command {name} of VM {vmid}", name=command.name, vmid=tunnel.vmid)
        raise TunnelError("internal error") from error


def admit(tunnel: Tunnel, name: str) -> Command:
    """Refuse everything after `quit`, then what is no command."""
    if tunnel.state in (State.LEAVING, State.ENDING):
        raise TunnelError(f"tunnel is in exit-mode, processing '{name}' cmd not possible")
    command = tunnel.kind.commands.get(name)
    if command is None:
        raise TunnelError(f"unknown command '{name}' given")
    if not command.is_quiet:
        tunnel.task.line(f"received command '{name}'")
    return command


def check_power(tunnel: Tunnel, command: Command) -> None:
    """Raises: WrongState: the source has given the VM up."""
    if tunnel.ledger.owed.handed_over and command.until is Until.UNLOCK:
        raise WrongState(f"VM {tunnel.vmid} is already unlocked")


@asynccontextmanager
async def opened(tunnel: Tunnel, lock: Lock) -> AsyncIterator[Guest]:
    """The VM's config as it is now, its mark compared; the lock is held on if the command says so."""
    guests, limits = tunnel.services.guests, tunnel.services.limits
    async with guests.locked(tunnel.vmid, limits.command_lock_s):
        conf = guests.read(tunnel.vmid)
        tunnel.check_mark(conf)
        guest = Guest(tunnel, conf)
        if lock is Lock.HOLD:
            yield guest
    if lock is Lock.READ:
        yield guest
