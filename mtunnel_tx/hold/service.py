"""The loop of the holder: one daemon's connection, programs' output and ends."""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mtunnel_tx.hold import VERSION
from mtunnel_tx.hold.program import HeldProgram
from mtunnel_tx.hold.shelf import MOST_DESCRIPTORS, Refused, Shelf, check_name, check_words

MESSAGE_BYTES = 1 << 17
MOST_PROGRAMS = 256
MOST_REPLIES = 64
"""Replies that wait to be sent; a daemon that takes none is not heard any more until it does."""
_CREDENTIALS = struct.Struct("3i")
Answer = tuple[Mapping[str, Any], Sequence[int]]


class _Line:
    """The connection of a daemon. `told`: for each program, the number of the next line to tell; -1: its end too.

    `is_deaf`: nothing can be told any more; what the daemon has said before it ended is still to be read.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.replies: deque[Answer] = deque()
        self.told: dict[str, int] = {}
        self.watches = False
        self.is_deaf = False

    def stop_telling(self) -> None:
        """Nothing more is told, and nothing new can be said: what is there already comes, and then the end."""
        self.is_deaf = True
        self.replies.clear()
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


class HolderService:
    """See the package. Args: listener: of SEQPACKET kind. restart_s: how long it waits for a daemon."""

    def __init__(self, listener: socket.socket, restart_s: float) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._restart_s = restart_s
        self._shelf = Shelf()
        self._programs: dict[str, HeldProgram] = {}
        self._line: _Line | None = None
        self._alone_since_s = time.monotonic()
        self._had_line = False
        self._over = False
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)

    def run(self) -> None:
        """Serve until no daemon comes any more."""
        while not self._over:
            for key, _ in self._selector.select(self._wait_s()):
                if key.fd in self._selector.get_map():
                    key.data()
            self._tell()
            self._over = self._over or self._is_left()
        self._end()

    def _wait_s(self) -> float | None:
        return None if self._line is not None else max(0.0, self._alone_since_s + self._restart_s - time.monotonic())

    def _is_left(self) -> bool:
        if self._line is not None:
            return False
        holds_nothing = self._had_line and not self._shelf.names() and not self._programs
        return holds_nothing or self._wait_s() == 0

    def _end(self) -> None:
        """Programs first: no importer may take the end of its input for a good one."""
        for program in self._programs.values():
            program.kill()
        for program in self._programs.values():
            if program.code is None:
                program.end()
        self._shelf.clear()
        # Before the socket is closed: a daemon that cannot connect makes another file of this name.
        with suppress(OSError):
            Path(self._listener.getsockname()).unlink()
        self._listener.close()

    # The daemon

    def _accept(self) -> None:
        with suppress(OSError):
            sock, _ = self._listener.accept()
            _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if uid != os.geteuid():
                sock.close()
                return
            sock.setblocking(False)
            self._finish_line()
            self._line, self._had_line = _Line(sock), True
            self._selector.register(sock, selectors.EVENT_READ, self._serve)

    def _finish_line(self) -> None:
        """Another daemon has come, which is to find all that the one before has put here."""
        if self._line is not None:
            self._line.stop_telling()
            while self._line is not None and self._take_one(self._line):
                pass
        if self._line is not None:
            self._lose()

    def _lose(self) -> None:
        """The daemon has gone, and everything that it has said was read."""
        assert self._line is not None
        self._selector.unregister(self._line.sock)
        self._line.sock.close()
        self._line = None
        self._alone_since_s = time.monotonic()

    def _serve(self) -> None:
        assert self._line is not None
        if len(self._line.replies) < MOST_REPLIES:
            self._take_one(self._line)

    def _take_one(self, line: _Line) -> bool:
        """Returns: False: there is nothing more at the moment."""
        try:
            data, fds, flags, _ = socket.recv_fds(line.sock, MESSAGE_BYTES, MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True  # told once, before what it has said
        except OSError:
            data, fds, flags = b"", [], 0
        if not data:
            self._lose()
            return False
        answer = self._answer(data, fds, flags)
        if not line.is_deaf:
            line.replies.append(answer)
        return True

    def _answer(self, data: bytes, fds: list[int], flags: int) -> Answer:
        message: Any = {}
        try:
            if flags & socket.MSG_TRUNC:
                raise Refused(f"a message is longer than {MESSAGE_BYTES} bytes")
            message = json.loads(data)
            if flags & socket.MSG_CTRUNC:
                raise Refused("descriptors are lost: no more can be open here")
            deed = _DEEDS.get(message["do"]) if isinstance(message, dict) and "do" in message else None
            if deed is None:
                raise Refused("unknown message")
            reply, given = deed(self, message, fds)
        except (Refused, ValueError, TypeError) as error:
            for fd in fds:
                with suppress(OSError):
                    os.close(fd)
            reply, given = {"error": str(error) or "refused"}, ()
        return {**reply, "id": message.get("id") if isinstance(message, dict) else None}, given

    def _hello(self, message: Mapping[str, Any], _fds: list[int]) -> Answer:
        self._restart_s = float(message.get("restart_s", self._restart_s))
        programs = {name: {"pid": one.pid, "code": one.code} for name, one in self._programs.items()}
        return {"version": VERSION, "names": self._shelf.names(), "programs": programs}, ()

    def _put(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        kept, fds[:] = list(fds), []
        self._shelf.put(message.get("name", ""), message.get("value"), kept)
        return {}, ()

    def _get(self, message: Mapping[str, Any], _fds: list[int]) -> Answer:
        entry = self._shelf.get(message.get("name", ""))
        return {"value": entry.value}, entry.fds

    def _drop(self, message: Mapping[str, Any], _fds: list[int]) -> Answer:
        self._shelf.drop(message.get("name", ""))
        return {}, ()

    def _finish(self, _message: Mapping[str, Any], _fds: list[int]) -> Answer:
        self._over = True
        return {}, ()

    # Programs

    def _spawn(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        name, env = message.get("name", ""), message.get("env")
        check_name(name)
        if name in self._programs or len(self._programs) >= MOST_PROGRAMS:
            raise Refused(f"'{name}' is one program too many")
        if not isinstance(env, dict):
            raise Refused("no environment")
        program = HeldProgram(check_words(message, "argv"), env, fds[0] if fds else None)
        self._programs[name] = program
        self._selector.register(program.output, selectors.EVENT_READ, lambda: self._read(program))
        self._selector.register(program.ending, selectors.EVENT_READ, lambda: self._note_end(program))
        while fds:
            os.close(fds.pop())
        return {"pid": program.pid}, ()

    def _read(self, program: HeldProgram) -> None:
        program.read()
        self._wait_for_output(program)

    def _wait_for_output(self, program: HeldProgram) -> None:
        is_waiting = program.output in self._selector.get_map()
        if is_waiting and not program.reads:
            self._selector.unregister(program.output)
        elif not is_waiting and program.reads and program.code is None:
            self._selector.register(program.output, selectors.EVENT_READ, lambda: self._read(program))

    def _note_end(self, program: HeldProgram) -> None:
        self._selector.unregister(program.ending)
        program.end()
        self._wait_for_output(program)

    def _kill(self, message: Mapping[str, Any], _fds: list[int]) -> Answer:
        program = self._programs.get(message.get("name", ""))
        if program is not None:
            program.kill()
        return {}, ()

    def _take_told(self, message: Mapping[str, Any], _fds: list[int]) -> Answer:
        program = self._programs.get(message.get("name", ""))
        if program is not None:
            program.told(int(message.get("next", 0)))
            self._wait_for_output(program)
        return {}, ()

    def _forget(self, message: Mapping[str, Any], _fds: list[int]) -> Answer:
        """The daemon knows how it ended."""
        name = message.get("name", "")
        program = self._programs.get(name)
        if program is None or program.code is None:
            raise Refused(f"'{name}' has not ended")
        del self._programs[name]
        if self._line is not None:
            self._line.told.pop(name, None)
        if program.output in self._selector.get_map():
            self._selector.unregister(program.output)
        program.close()
        return {}, ()

    def _watch(self, _message: Mapping[str, Any], _fds: list[int]) -> Answer:
        assert self._line is not None
        self._line.watches = True
        return {}, ()

    # What the daemon is told

    def _tell(self) -> None:
        """Replies first, then lines and ends, as long as there is room."""
        line = self._line
        if line is None or line.is_deaf:
            return
        try:
            while line.replies:
                self._send(line, *line.replies[0])
                line.replies.popleft()
            for name, program in list(self._programs.items()) if line.watches else ():
                self._tell_of(line, name, program)
            events = selectors.EVENT_READ
        except BlockingIOError:
            events = selectors.EVENT_WRITE | (selectors.EVENT_READ if len(line.replies) < MOST_REPLIES else 0)
        except OSError:
            line.stop_telling()
            events = selectors.EVENT_READ
        self._selector.modify(line.sock, events, self._serve)

    def _tell_of(self, line: _Line, name: str, program: HeldProgram) -> None:
        number = line.told.get(name, program.first)
        while 0 <= number < program.next_number:
            text = program.lines[number - program.first].decode("utf-8", "replace")
            self._send(line, {"program": name, "number": number, "line": text}, ())
            number += 1
            line.told[name] = number
        if program.code is not None and number >= 0:
            self._send(line, {"program": name, "code": program.code}, ())
            line.told[name] = -1

    def _send(self, line: _Line, message: Mapping[str, Any], fds: Sequence[int]) -> None:
        socket.send_fds(line.sock, [json.dumps(message).encode("ascii")], fds)


_DEEDS: Mapping[str, Callable[[HolderService, Mapping[str, Any], list[int]], Answer]] = {
    "hello": HolderService._hello,
    "put": HolderService._put,
    "get": HolderService._get,
    "drop": HolderService._drop,
    "spawn": HolderService._spawn,
    "watch": HolderService._watch,
    "told": HolderService._take_told,
    "kill": HolderService._kill,
    "forget": HolderService._forget,
    "finish": HolderService._finish,
}
