"""The small parts of a virtual machine: the agent's port, random numbers, SMBIOS fields, the clock.

Every function raises TunnelError, `KEY: REASON`, for what cannot be run here.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping

from mtunnel_tx.checks import CONTROL
from mtunnel_tx.errors import refuse
from mtunnel_tx.pve.guestformats import AGENT, RNG, SMBIOS
from mtunnel_tx.pve.property import PropertyFormat


def parse_option(form: PropertyFormat, options: Mapping[str, str], key: str, default: str = "") -> dict[str, str]:
    """A property string that was checked before; empty where it is absent."""
    text = options.get(key, default)
    return form.parse(text) if text else {}


def read_agent(options: Mapping[str, str]) -> str | None:
    """The kind of port that the guest's agent has; None: there is no agent."""
    agent = parse_option(AGENT, options, "agent")
    if agent.get("enabled") != "1":
        return None
    if agent.get("type") == "isa" and all(f"serial{number}" in options for number in range(4)):
        raise refuse("agent", "there are four ISA serial ports, and all have their use")
    return agent.get("type", "virtio")


def has_tablet(options: Mapping[str, str]) -> bool:
    """Without a word about it, there is none where the display is text, or SPICE has a pointer of its own."""
    default = "0" if options.get("vga", "").removeprefix("type=").startswith(("serial", "qxl")) else "1"
    return options.get("tablet", default) == "1"


def read_rng(options: Mapping[str, str]) -> dict[str, str] | None:
    """The random number generator's options."""
    rng = parse_option(RNG, options, "rng0")
    if int(rng.get("max_bytes", "1")) > 0 and not 0 < int(rng.get("period", "1")) < 1 << 32:
        raise refuse("rng0", f"period is {rng['period']}, no number of milliseconds")
    return rng or None


def read_smbios(options: Mapping[str, str]) -> dict[str, str]:
    """Type 1's fields as text."""
    fields = parse_option(SMBIOS, options, "smbios1")
    encoded = fields.pop("base64", "0") == "1"
    return {key: _decoded(value) if encoded and key != "uuid" else value for key, value in fields.items()}


def _decoded(value: str) -> str:
    try:
        text = b64decode(value, validate=True).decode("utf-8")
    except ValueError as error:
        raise refuse("smbios1", "a value is not in base64") from error
    if CONTROL.search(text):
        raise refuse("smbios1", "a value has control characters")
    return text


def read_clock(options: Mapping[str, str], *, windows: int) -> dict[str, str]:
    """Options of the real time clock; Windows keeps local time. Args: windows: its version, 0: another system."""
    clock = {}
    if options.get("tdf", "1" if windows and options.get("acpi") != "0" else "0") == "1":
        clock["driftfix"] = "slew"
    if options.get("startdate", "now") != "now":
        clock["base"] = options["startdate"]
    elif options.get("localtime", "1" if windows else "0") == "1":
        clock["base"] = "localtime"
    return clock
