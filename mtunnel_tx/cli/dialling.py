"""The websockets of `mtunnel migrate`: each may outlive its connections, and the outages are told."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

from twisted.logger import Logger

from mtunnel_tx.http.redial import open_lasting_stream
from mtunnel_tx.pve.maps import Endpoint
from mtunnel_tx.source.links import Dial
from mtunnel_tx.source.outages import Outages
from mtunnel_tx.stream.flow import Flow, FlowOutcome, Relay
from mtunnel_tx.stream.limits import FlowLimits
from mtunnel_tx.wire.socketkinds import COMMANDS, find_socket_kind

log = Logger()

LIMITS = FlowLimits(half_close_s=3600.0)
"""A target that has a disk to flush may end its stream late; what counts is what its import says."""

AWAY_S = 30.0
"""A ticket is good for 40 s."""


def make_dial(
    reactor: Any, endpoint: Endpoint, relay: Relay, outages: Outages, flows: list[Flow], limits: FlowLimits
) -> Dial:
    """Opens websockets at the endpoint.

    Args: flows: all that are opened are added. limits: as this host's configuration has them.
    """
    limits = replace(LIMITS, dead_peer_s=limits.dead_peer_s, ping_s=limits.ping_s)

    async def dial(path_query: str, sock: socket.socket, *, ends_with_peer: bool = False) -> Flow:
        began_s = reactor.seconds()
        flow = await open_lasting_stream(
            reactor, endpoint, path_query, sock, relay=relay, limits=limits, ends_with_peer=ends_with_peer,
            patience_s=patience_of(path_query),
        )  # fmt: skip
        log.debug(
            "websocket {path} is open, {took_s:.3f} s",
            path=path_query.partition("?")[0],
            took_s=reactor.seconds() - began_s,
        )
        watch(outages, flow, path_query)
        flows.append(flow)
        return flow

    return dial


def patience_of(path_query: str) -> float:
    """How long a target may be away when a stream of a live tunnel is opened: a new tunnel has nobody to wait for."""
    return 0.0 if _carries_commands(path_query) else AWAY_S


def _carries_commands(path_query: str) -> bool:
    names = parse_qs(path_query.partition("?")[2]).get("socket", [""])
    return find_socket_kind(names[0]) is COMMANDS


def watch(outages: Outages, flow: Flow, path_query: str) -> None:
    """Let the outages of a stream be told. Args: path_query: by which it was opened."""

    def forget(result: FlowOutcome) -> FlowOutcome:
        outages.forget(flow)
        return result

    is_commands = _carries_commands(path_query)
    terms = flow.terms
    outages.watch(flow, longest_s=terms.park_s, notice_s=terms.limits.notice_s, carries_commands=is_commands)
    flow.done.addCallback(forget)
