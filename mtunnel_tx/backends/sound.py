"""QEMU's sound card, whose sound goes to a SPICE viewer, or nowhere."""

from __future__ import annotations

from mtunnel_tx.backends.devices import device, placed
from mtunnel_tx.pve.hardware import Hardware

_ID = "audiodev0"
"""Proxmox's name of the card; `audio0` is a part of each q35 machine."""
_CODECS = ("hda-micro", "hda-duplex")


def sound_devices(hardware: Hardware, *, spice: bool) -> list[str]:
    """The card, with the codecs of an Intel one.

    Args: spice: QEMU has a SPICE server; without one nobody hears anything, and the guest has the same card.
    """
    if hardware.sound is None:
        return []
    driver = hardware.sound.get("driver", "spice")
    backend = f"{driver}-backend0"
    arguments = ["-audiodev", f"{driver if spice and hardware.display.has_spice else 'none'},id={backend}"]
    model = hardware.sound["device"]
    if model == "AC97":
        return arguments + placed("audio0", model, id=_ID, audiodev=backend)
    arguments += placed("audio0", model, id=_ID)
    for number, codec in enumerate(_CODECS):
        arguments += device(codec, id=f"{_ID}-codec{number}", bus=f"{_ID}.0", cad=number, audiodev=backend)
    return arguments
