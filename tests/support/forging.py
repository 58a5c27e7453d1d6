"""What somebody can do who owns the server's disk: rewrite the log's messages so that the server believes them.

A block file of nats-server holds one record a message: length, sequence, time, subject, headers, payload, and a
HighwayHash-64 over these, keyed by the stream's name and the block's number. None of that is secret.
"""

import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from agentfield.audit.chain import Stored

_HEAD = struct.Struct("<IQqH")
_WITH_HEADERS = 1 << 31
_M32, _M64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_MUL0 = (0xDBE6D5D5FE4CCE2F, 0xA4093822299F31D0, 0x13198A2E03707344, 0x243F6A8885A308D3)
_MUL1 = (0x3BD39E10CB0EF593, 0xC0ACF169B5F18A8C, 0xBE5466CF34E90C6C, 0x452821E638D01377)


def forge(store: Path, stream: str, change: Callable[[list[Stored]], list[Stored]]) -> None:
    """Rewrite the only block of a stream, while its server is stopped."""
    (block,) = (store / "jetstream").glob(f"**/streams/{stream}/msgs/*.blk")
    key = sha256(f"{stream}-{block.stem}".encode()).digest()
    before = _read(block.read_bytes(), key)
    block.write_bytes(b"".join(_record(stored, key) for stored in change(before)))
    (block.parent / "index.db").unlink()  # the server makes it anew from the blocks


def _read(content: bytes, key: bytes) -> list[Stored]:
    messages = []
    at = 0
    while at < len(content):
        length, sequence, timestamp, subject_length = _HEAD.unpack_from(content, at)
        end = at + (length & ~_WITH_HEADERS)
        begin = at + _HEAD.size
        subject = content[begin : begin + subject_length]
        rest = content[begin + subject_length : end - 8]
        headers, payload = b"", rest
        if length & _WITH_HEADERS:
            size = int.from_bytes(rest[:4], "little")
            headers, payload = rest[4 : 4 + size], rest[4 + size :]
        stored = Stored(subject.decode(), sequence, timestamp, headers, payload)
        assert _record(stored, key) == content[at:end], "the server writes its blocks in another way than this believes"
        messages.append(stored)
        at = end
    return messages


def _record(stored: Stored, key: bytes) -> bytes:
    subject = stored.subject.encode()
    sizes = len(stored.headers).to_bytes(4, "little") if stored.headers else b""
    length = _HEAD.size + len(subject) + len(sizes) + len(stored.headers) + len(stored.payload) + 8
    head = _HEAD.pack(
        length | (_WITH_HEADERS if stored.headers else 0), stored.sequence, stored.timestamp, len(subject)
    )
    checksum = _highway(key, head[4:20] + subject + stored.headers + stored.payload)
    return head + subject + sizes + stored.headers + stored.payload + checksum.to_bytes(8, "little")


class _State:
    def __init__(self, key: bytes) -> None:
        lanes: tuple[int, ...] = struct.unpack("<4Q", key)
        self.mul0, self.mul1 = list(_MUL0), list(_MUL1)
        self.v0 = [mul ^ lane for mul, lane in zip(_MUL0, lanes, strict=True)]
        self.v1 = [mul ^ _swapped(lane) for mul, lane in zip(_MUL1, lanes, strict=True)]

    def update(self, lanes: tuple[int, ...]) -> None:
        v0, v1, mul0, mul1 = self.v0, self.v1, self.mul0, self.mul1
        for i in range(4):
            v1[i] = (v1[i] + mul0[i] + lanes[i]) & _M64
            mul0[i] ^= (v1[i] & _M32) * (v0[i] >> 32) & _M64
            v0[i] = (v0[i] + mul1[i]) & _M64
            mul1[i] ^= (v0[i] & _M32) * (v1[i] >> 32) & _M64
        for source, target in ((v1, v0), (v0, v1)):
            for low in (0, 2):
                _zip(source[low + 1], source[low], target, low)


def _swapped(lane: int) -> int:
    return (lane >> 32) | (lane << 32) & _M64


def _zip(v1: int, v0: int, target: list[int], low: int) -> None:
    target[low] += (
        (((v0 & 0xFF000000) | (v1 & 0xFF00000000)) >> 24)
        | (((v0 & 0xFF0000000000) | (v1 & 0xFF000000000000)) >> 16)
        | (v0 & 0xFF0000)
        | ((v0 & 0xFF00) << 32)
        | ((v1 & 0xFF00000000000000) >> 8)
        | ((v0 << 56) & _M64)
    )
    target[low + 1] += (
        (((v1 & 0xFF000000) | (v0 & 0xFF00000000)) >> 24)
        | (v1 & 0xFF0000)
        | ((v1 & 0xFF0000000000) >> 16)
        | ((v1 & 0xFF00) << 24)
        | ((v0 & 0xFF000000000000) >> 8)
        | ((v1 & 0xFF) << 48)
        | (v0 & 0xFF00000000000000)
    )
    target[low] &= _M64
    target[low + 1] &= _M64


def _highway(key: bytes, content: bytes) -> int:
    state = _State(key)
    whole = len(content) // 32 * 32
    for at in range(0, whole, 32):
        state.update(struct.unpack_from("<4Q", content, at))
    rest = content[whole:]
    if rest:
        _finish(state, rest)
    for _ in range(4):
        v0 = state.v0
        state.update((_swapped(v0[2]), _swapped(v0[3]), _swapped(v0[0]), _swapped(v0[1])))
    return sum((state.v0[0], state.v1[0], state.mul0[0], state.mul1[0])) & _M64


def _finish(state: _State, rest: bytes) -> None:
    size = len(rest)
    state.v0 = [(lane + (size << 32) + size) & _M64 for lane in state.v0]
    state.v1 = [_rotated(lane & _M32, size) | _rotated(lane >> 32, size) << 32 for lane in state.v1]
    packet = bytearray(32)
    aligned = size & ~3
    packet[:aligned] = rest[:aligned]
    if size & 16:
        packet[28:32] = rest[-4:]
    elif size & 3:
        tail = rest[aligned:]
        packet[16:19] = bytes((tail[0], tail[(size & 3) >> 1], tail[(size & 3) - 1]))
    state.update(struct.unpack("<4Q", packet))


def _rotated(half: int, count: int) -> int:
    return ((half << count) | (half >> (32 - count))) & _M32
