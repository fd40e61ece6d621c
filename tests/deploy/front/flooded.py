"""A server whose certificate is replaced under a flood of connections: FOLDER TIMES SECONDS."""

import socket
import sys
import threading
import time
from concurrent import futures
from contextlib import ExitStack
from pathlib import Path

import grpc

from airtune.deploy.server.authority import ensure_certificates, replace_certificate
from airtune.deploy.server.tls import ServerTls
from airtune.wire.channel import server_options

HELLO = b"\x16\x03\x01"
"""How a TLS handshake begins."""
BURST = 50


def main() -> None:
    folder, times, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    tls = ServerTls(ensure_certificates(folder, ["127.0.0.1"]))
    options = server_options(handshake_s=1.0, connections=1 << 20)
    server = grpc.server(futures.ThreadPoolExecutor(4), options=options)
    port = server.add_secure_port("127.0.0.1:0", tls.credentials())
    server.start()
    ended = threading.Event()

    def flood() -> None:
        while not ended.wait(0.02):
            with ExitStack() as stack:
                for _ in range(BURST):
                    line = socket.create_connection(("127.0.0.1", port))
                    stack.enter_context(line).sendall(HELLO)

    floods = [threading.Thread(target=flood) for _ in range(2)]
    for one in floods:
        one.start()
    try:
        for _ in range(times):
            replace_certificate(tls.files)
            assert tls.refresh("127.0.0.1", port)
            time.sleep(seconds / times)
    finally:
        ended.set()
        for one in floods:
            one.join()
        server.stop(None).wait()


if __name__ == "__main__":
    main()
