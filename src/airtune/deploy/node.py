"""Flower's part of a device: its SuperNode, and the messenger that starts its client processes.

The SuperNode's own interface listens on this machine alone, and gives messages only to who knows the
secret of this device's folder.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from airtune.deploy.flower_cli import environment, program
from airtune.deploy.hatch import new_token
from airtune.deploy.processes import end_group


class FlowerNode:
    """The two processes, started and ended together."""

    def __init__(self, server: str, *, config: Mapping[str, str], proof: list[str],
                 home: Path, log: Path, secret: Path) -> None:  # fmt: skip
        """Start both.

        Args:
            server: HOST:PORT.
            config: what every client process is told of its device.
            proof: Flower's options for certificate and key, or for none.
            home: Flower's own folder.
            log: file that both write to, begun anew.
            secret: file for what the two know of one another, made anew.
        """
        new_token(secret)
        address = f"127.0.0.1:{_free_port()}"
        self._environment, self._log = environment(home), log
        log.write_bytes(b"")
        self._node = self._start([
            program("flower-supernode"), "--superlink", server, "--isolation", "process",
            "--superexec-auth-secret-file", str(secret),
            "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--node-config",
            " ".join(f"{key}={json.dumps(value)}" for key, value in config.items()), *proof,
        ])  # fmt: skip
        try:
            self._messenger = self._start([
                sys.executable, "-m", "airtune.deploy.messenger", address, str(secret),
                str(os.getpid()), str(self._node.pid),
            ])  # fmt: skip
        except OSError:
            end_group(self._node, grace_s=1.0)
            raise

    def is_running(self) -> bool:
        """Return whether both still run; one is of no use without the other."""
        return self._node.poll() is None and self._messenger.poll() is None

    def end(self, *, grace_s: float) -> None:
        """End both, and what they have started."""
        end_group(self._messenger, grace_s=grace_s)
        end_group(self._node, grace_s=grace_s)

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
