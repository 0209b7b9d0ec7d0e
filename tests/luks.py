"""A LUKS container, version 1, as cryptsetup and QEMU make it, but without measuring how fast the machine is.

`qemu-img create -f luks` and `cryptsetup luksFormat` count how often the processor can derive a key in a given time, by
the process's own CPU time. A kernel that counts that in ticks can find none at all, and qemu-img gives up.
"""

from __future__ import annotations

import hashlib
import random
import struct

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SECTOR = 512
KEY_BYTES, SALT_BYTES, DIGEST_BYTES = 64, 32, 20
STRIPES = 4000
ITERATIONS = 1000
"""The least that LUKS allows; the container keeps no secret."""
SLOT_SECTOR = 8
PAYLOAD_SECTOR = 4096
_SLOTS = 8
_SLOT_SECTORS = -(-KEY_BYTES * STRIPES // 4096) * 8
"""Each begins at 4 KiB."""
_ON, _OFF = 0x00AC71F3, 0x0000DEAD
_HEAD = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT = struct.Struct(">II32sII")
_UUID = b"5c2b6e0a-0000-4000-8000-000000000001"


def make_luks(passphrase: bytes, content: bytes) -> bytes:
    """The whole container. Args: content: what it holds in clear, whole sectors of 512 bytes."""
    chance = random.Random(3)
    key, salt, slot_salt = (chance.randbytes(count) for count in (KEY_BYTES, SALT_BYTES, SALT_BYTES))
    derived = _derive(passphrase, slot_salt, KEY_BYTES)
    head = _HEAD.pack(
        *(b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256", PAYLOAD_SECTOR, KEY_BYTES),
        *(_derive(key, salt, DIGEST_BYTES), salt, ITERATIONS, _UUID),
    )
    slots = b"".join(_slot(number, slot_salt) for number in range(_SLOTS))
    material = _encrypt(derived, _split(key, chance))
    begin = (head + slots).ljust(SLOT_SECTOR * SECTOR, b"\0") + material
    return begin.ljust(PAYLOAD_SECTOR * SECTOR, b"\0") + _encrypt(key, content)


def _derive(secret: bytes, salt: bytes, count: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", secret, salt, ITERATIONS, count)


def _slot(number: int, salt: bytes) -> bytes:
    """The first one is in use."""
    at = SLOT_SECTOR + number * _SLOT_SECTORS
    return _SLOT.pack(*((_OFF, 0, b"") if number else (_ON, ITERATIONS, salt)), at, STRIPES)


def _split(key: bytes, chance: random.Random) -> bytes:
    """LUKS's anti-forensic splitter: all stripes are needed to find the key again."""
    stripes, mixed = [], bytes(len(key))
    for _ in range(STRIPES - 1):
        stripes.append(chance.randbytes(len(key)))
        mixed = _diffuse(_xor(mixed, stripes[-1]))
    return b"".join([*stripes, _xor(mixed, key)])


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def _diffuse(block: bytes) -> bytes:
    size = hashlib.sha256().digest_size
    parts = (block[at : at + size] for at in range(0, len(block), size))
    return b"".join(hashlib.sha256(struct.pack(">I", number) + part).digest() for number, part in enumerate(parts))


def _encrypt(key: bytes, data: bytes) -> bytes:
    """AES-XTS, each sector by its number."""
    sectors = (data[at : at + SECTOR] for at in range(0, len(data), SECTOR))
    return b"".join(_encrypt_sector(key, number, sector) for number, sector in enumerate(sectors))


def _encrypt_sector(key: bytes, number: int, sector: bytes) -> bytes:
    cipher = Cipher(algorithms.AES(key), modes.XTS(number.to_bytes(16, "little"))).encryptor()
    return cipher.update(sector) + cipher.finalize()
