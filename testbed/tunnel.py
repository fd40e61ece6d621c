"""Delay and loss between two TUN devices, each in a namespace of its own.

    python -m testbed.tunnel SPACE NAME SPACE NAME DELAY_S LOSS

It goes on in the background and ends when either device is gone. Rates are not its business: tc shapes what the kernel sends in.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import selectors
import struct
import sys
import time
from pathlib import Path

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_PACKET_BYTES = 65536
_QUEUE_PACKETS = 5000
"""Packets under way in a direction, after which more are lost."""


def open_tun(space: str, name: str) -> int:
    """Make a TUN device in a namespace and return its descriptor, which works from any."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/var/run/netns/{space}").open("rb") as handle:
        if libc.setns(handle.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"namespace {space} cannot be entered")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
    fcntl.ioctl(descriptor, _TUNSETIFF, request)
    return descriptor


def relay(one: int, other: int, *, delay_s: float, loss: float) -> None:
    """Carry packets both ways until a device is gone."""
    draw = random.Random(0)
    under_way: list[tuple[float, int, int, bytes]] = []
    count = 0
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while True:
            wait = max(under_way[0][0] - time.monotonic(), 0.0) if under_way else None
            for key, _ in selector.select(wait):
                packet = os.read(key.fd, _PACKET_BYTES)
                if draw.random() >= loss and len(under_way) < 2 * _QUEUE_PACKETS:
                    count += 1
                    due = time.monotonic() + delay_s
                    heapq.heappush(under_way, (due, count, key.data, packet))
            now = time.monotonic()
            while under_way and under_way[0][0] <= now:
                _, _, target, packet = heapq.heappop(under_way)
                write(target, packet)


def write(target: int, packet: bytes) -> None:
    """Hand a packet on; a device that is down loses it."""
    try:
        os.write(target, packet)
    except OSError as error:
        if error.errno not in {5, 11, 105}:  # EIO: link down; EAGAIN, ENOBUFS: full
            raise


def main() -> None:
    """Join two devices as the command line says."""
    space, name, other_space, other_name, delay, loss = sys.argv[1:]
    ends = open_tun(space, name), open_tun(other_space, other_name)
    if os.fork():
        return
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    try:
        relay(*ends, delay_s=float(delay), loss=float(loss))
    except OSError:
        return  # a namespace was taken down, and its device with it


if __name__ == "__main__":
    main()
