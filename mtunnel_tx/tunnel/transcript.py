"""What went over a tunnel's command connection, so that each command has its effect once if the daemon is killed.

Notes are written in this order: `heard` when bytes have come, before they are looked at; `asked` before a command is
begun; `answered` with its reply, before that is sent. `interrupted` comes after an outage. They fold into a
`Transcript`. The next daemon then knows which line it has to begin with, whether its effect may be there already, and,
as a flow's positions tell how many bytes the peer has sent and received, which bytes of replies were never sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mtunnel_tx.errors import WrongState

VERSION = 1
"""Of the notes; those of another one are not understood."""
TAIL_BYTES = 256 << 10
"""Of replies, kept to be sent again: more than a UNIX socket and a transport hold."""
_BYTES = ("pending", "tail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """See the module.

    facts: about the tunnel, that never change. heard_bytes: how many have come. pending: those of them that no reply is
    for yet. asked: the first pending line was begun; its journal had so many records then; None: it was not.
    said_bytes: of all replies with their line feeds. tail: the last of them. state: the tunnel's after the last reply.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    heard_bytes: int = 0
    pending: bytes = b""
    asked: int | None = None
    said_bytes: int = 0
    tail: bytes = b""
    state: Mapping[str, Any] = field(default_factory=dict)

    def unsaid(self, received_bytes: int) -> bytes | None:
        """What the peer has not received. Args: received_bytes: what it has. Returns: None: that cannot be."""
        missing = self.said_bytes - received_bytes
        if not 0 <= missing <= len(self.tail):
            return None
        return self.tail[len(self.tail) - missing :]

    @property
    def begun(self) -> bytes | None:
        """The line that was begun and not answered, without its line feed; None: there is none."""
        return self.pending.partition(b"\n")[0] if self.asked is not None else None


def apply(transcript: Transcript, note: Mapping[str, Any]) -> Transcript:
    """One step of the fold. Raises: WrongState: a note that this version does not know, or that cannot stand here."""
    try:
        return _CHANGES[note["note"]](transcript, note)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise WrongState("the notes about its tunnel are damaged") from error


def fold_notes(notes: Iterable[Mapping[str, Any]]) -> Transcript:
    """Raises: WrongState."""
    transcript = Transcript()
    for note in notes:
        transcript = apply(transcript, note)
    return transcript


def heard(data: bytes) -> Mapping[str, Any]:
    """The note about bytes that have come."""
    return {"note": "heard", "data": data.decode("latin-1")}


def asked(records: int) -> Mapping[str, Any]:
    """The note before a command is begun. Args: records: how many the journal has."""
    return {"note": "asked", "records": records}


def answered(reply: bytes, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The note before a reply is sent. Args: reply: without its line feed. state: of the tunnel."""
    return {"note": "answered", "reply": reply.decode("latin-1"), "state": dict(state)}


def interrupted(before_s: float) -> Mapping[str, Any]:
    """The note after an outage. Args: before_s: how long all of them were, up to now."""
    return {"note": "interrupted", "s": before_s}


def summary(transcript: Transcript) -> Mapping[str, Any]:
    """One note that says what all say together."""
    values = {**asdict(transcript), **{key: getattr(transcript, key).decode("latin-1") for key in _BYTES}}
    return {"note": "summary", "version": VERSION, **values}


def _heard(transcript: Transcript, note: Mapping[str, Any]) -> Transcript:
    data = note["data"].encode("latin-1")
    return replace(transcript, heard_bytes=transcript.heard_bytes + len(data), pending=transcript.pending + data)


def _asked(transcript: Transcript, note: Mapping[str, Any]) -> Transcript:
    if transcript.asked is not None:
        raise ValueError("one command at a time")
    return replace(transcript, asked=int(note["records"]))


def _answered(transcript: Transcript, note: Mapping[str, Any]) -> Transcript:
    reply = note["reply"].encode("latin-1") + b"\n"
    return replace(
        transcript,
        asked=None,
        pending=transcript.pending.partition(b"\n")[2],
        said_bytes=transcript.said_bytes + len(reply),
        tail=(transcript.tail + reply)[-TAIL_BYTES:],
        state=dict(note["state"]),
    )


def _interrupted(transcript: Transcript, note: Mapping[str, Any]) -> Transcript:
    return replace(transcript, state={**transcript.state, "interrupted_s": float(note["s"])})


def _summary(_transcript: Transcript, note: Mapping[str, Any]) -> Transcript:
    if note["version"] != VERSION:
        raise ValueError("notes of another version")
    values = {key: value for key, value in note.items() if key not in ("note", "version")}
    return Transcript(**{**values, **{key: values[key].encode("latin-1") for key in _BYTES}})


_CHANGES = {
    "heard": _heard,
    "asked": _asked,
    "answered": _answered,
    "interrupted": _interrupted,
    "summary": _summary,
}
