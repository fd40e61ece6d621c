"""Ports for servers that tests start."""

import random
import socket


def free_port(neighbours: int = 0) -> int:
    """Return a port that nothing listens at, nor at the next ones.

    It lies below those that the system gives to outgoing connections, of which other tests open
    many: one of theirs may take the port before the server does.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        try:
            for each in range(port, port + neighbours + 1):
                with socket.socket() as probe:
                    probe.bind(("0.0.0.0", each))
        except OSError:
            continue
        return port
