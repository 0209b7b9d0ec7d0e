"""ticker, a guest that proves it is alive and whole: it counts on its serial port, and checks its memory and disk.

18.2 times a second it prints a number and a flag, and writes the number to the next sector of a ring on its disk. Made
from tests/guest/ticker.S.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib

BEAT = re.compile(rb"([0-9A-F]{8}) (.)\n")
"""A line on its first serial port: how often it beat, and a flag; `.`: all is well."""
SECTOR_BYTES = 512
# fmt: off
_CODE = zlib.decompress(base64.b85decode(
    'c-rk#-%C?*6hGI^<J!zSY*-IAh8YEsWe{PmC0e0GF@#|B&{KUy2p{I1Azo`^MlNfJe?TO@NE$5=Ycsaljn+#)uqdM+'
    'EJyH_4GlCC@3!0bZer3?k3H<em&4(F&*z-a`EtHV;~?aq15h-ovsN4R&-$bOH%~xJM*xEjur$_Ru?6KRxEj;|dCak_'
    'iAH<gp*%R~e(1!2gC2tA`TJZ9jc5d4SvmU5CX8VP0+5j%NMcxtY6mF*H(9-~5npbTTJ52XCN*jiWJhRKvv6Jt>VQl~'
    'wf1V>s;_K6K))!Cxdn;mD&C2_C0feyRnaLO_!HGx=GA`kCnQ*hqA)Y`8hCgnLIMAPbN2#`RLm0oQJGe3OY9}n-^$nM'
    'P?kghj6i(01|;pVhuuf+Tx=u065@?%NsB8b2lVt*R$iuE92vf>CH1I9;RhMf;&aqt4N(w~449em&3fb4rsKL|F#4m!'
    'BfDACE>j!1-Q=!Sf}kZ!4}@ZsbcUs_N5<F!Mwz4vt$2Ng@4Lm;Va`N6PgO~4^k;?)sIr34z}9L*TzyHtPV>6P@5HkR'
    'zyYgcMzQI%u;*{apK(at2j|!P$jSF!8;am6C!Sc2&aQCNYsmSryfP;oR;N(NE-V#^26f^T3<Wu$keO(tJ2TE>WSAv3'
    'M_AMi8)KeOqY)U)#l|+12UW6^o@k=+bZ0L2q?$_?(*X<pn7*q+`Zmqp{Z)GYde&<*iXdzaTF!<tMX6EFrI}liLaRk7'
    't6tb`?RGJ~9y#klXWUwM<ugBNHlSBFb<XtPuwWJqn0(>3=@EqLfI^Q$xYbQ-AZ$T?vdn;ql5x5ZT9UuQ9d5cEk{G_='
    'W}jTG$czDjbxrn<_eF(bs)6K+WY1~Hf8e48si(?$NpLwks*YM<li$<Zs|R)pD4>A<2EPHHwMT3'
))
# fmt: on


def ticker(ballast_mib: int = 0, burst: int = 0, base: int = 2048, ring: int = 1024, *, agent: bool = False) -> bytes:
    """The first 2048 bytes of a boot disk.

    Args: ballast_mib: memory above 1 MiB that it fills and checks. burst: chunks of 64 KiB it dirties at each beat.
        base, ring: first sector, and number of sectors (a power of two), that it writes in turn. agent: it answers as a
        guest agent on its second serial port.
    """
    code = bytearray(_CODE)
    struct.pack_into("<HHIIH", code, 4, ballast_mib, burst, base, ring - 1, int(agent))
    return bytes(code)


def read_beats(serial: bytes) -> list[tuple[int, str]]:
    """Every whole line of a serial port's output: number and flag."""
    return [(int(number, 16), flag.decode("ascii", "replace")) for number, flag in BEAT.findall(serial)]


def is_unbroken(beats: list[tuple[int, str]]) -> bool:
    """Whether not a number is missing, none came twice, and the guest found its memory and disk as they should be."""
    numbers = [number for number, _ in beats]
    first = numbers[0] if numbers else 0
    return numbers == list(range(first, first + len(numbers))) and {flag for _, flag in beats} == {"."}


def read_ring(disk: bytes, base: int = 2048, ring: int = 1024) -> list[int]:
    """The numbers in the sectors of the ring that were written, sorted. Raises: ValueError: a torn one."""
    numbers = []
    for sector in range(base, base + ring):
        words = struct.unpack_from("<128I", disk, sector * SECTOR_BYTES)
        if len(set(words)) != 1:
            raise ValueError(f"sector {sector} is torn")
        numbers.append(words[0])
    return sorted(number for number in numbers if number)
