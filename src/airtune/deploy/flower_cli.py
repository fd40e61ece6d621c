"""Flower's own programs, called as programs: in one process its libraries would warn and log.

Nothing of what is started here phones home: telemetry, update checks and the installation of
dependencies at run time are switched off.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airtune.errors import ConnectionFailedError, DeploymentError, MissingExtraError
from airtune.records import storage, write_atomically

_CONNECTION = "airtune"
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Flower looks for work once a second by default; a round has several such waits
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
}
_REPLY_S = 60.0


def program(name: str) -> str:
    """Return the path of one of Flower's programs.

    Raises:
        MissingExtraError: if Flower is not installed.
    """
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise MissingExtraError(
            "real devices need Flower; install it with pip install 'airtune[flower]'"
        )
    return str(path)


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of Flower's programs.

    Args:
        home: Flower's own folder: configuration and unpacked apps.
        extra: what else to set.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **_QUIET, "FLWR_HOME": str(home), "PATH": path, **(extra or {})}


@dataclass(frozen=True, slots=True)
class Link:
    """How Flower's command line reaches a server."""

    address: str
    """HOST:PORT."""
    authority: Path | None
    """Certificate that the server's is checked against; None = no TLS."""
    home: Path

    def prepare(self) -> None:
        """Write Flower's configuration.

        Raises:
            DeploymentError: if the certificate is not there.
        """
        lines = ["[superlink]", f'default = "{_CONNECTION}"', "", f"[superlink.{_CONNECTION}]",
                 f"address = {json.dumps(self.address)}"]  # fmt: skip
        if self.authority is None:
            lines.append("insecure = true")
        else:
            if not self.authority.is_file():
                raise DeploymentError(
                    f"there is no certificate at {self.authority}; copy ca.crt from the server "
                    "and name it with --ca"
                )
            lines.append(f"root-certificates = {json.dumps(str(self.authority.resolve()))}")
        with storage(self.home):
            self.home.mkdir(parents=True, exist_ok=True)
        write_atomically(self.home / "config.toml", "\n".join(lines) + "\n")

    def call(self, words: Sequence[str]) -> dict[str, Any]:
        """Run a command of Flower's that answers in JSON.

        Raises:
            ConnectionFailedError: if the server cannot be reached or is not who it should be.
            DeploymentError: if the server refuses the command.
        """
        self.prepare()
        command = [program("flwr"), *words, "--format", "json"]
        done = subprocess.run(
            command, env=environment(self.home), capture_output=True, text=True,
            timeout=_REPLY_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        answer = _json_in(done.stdout)
        if answer is not None and answer.get("success"):
            return answer
        said = done.stdout + done.stderr if answer is None else str(answer.get("error-message", ""))
        raise self.fault(said)

    def follow(self, run: int) -> Iterator[str]:
        """Yield the lines of a run's log as they are written, until it ends."""
        self.prepare()
        command = [program("flwr"), "log", str(run), _CONNECTION, "--stream"]
        with subprocess.Popen(
            command, env=environment(self.home, {"PYTHONUNBUFFERED": "1"}), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            try:
                yield from process.stdout or ()
            finally:
                process.terminate()

    def fault(self, said: str) -> ConnectionFailedError | DeploymentError:
        """Return what was wrong, in one sentence, from what Flower said."""
        low = said.lower()
        if "certificate" in low or "ssl" in low or "tls" in low:
            return ConnectionFailedError(
                f"the server at {self.address} does not prove itself by the certificate "
                f"{self.authority or '(none: --insecure)'}; take ca.crt from that server, and call "
                "it by a name that its certificate holds"
            )
        if any(word in low for word in ("connect", "unavailable", "refused", "timed out")):
            return ConnectionFailedError(
                f"no server answers at {self.address}; start one with airtune server start, or "
                "check address and firewall"
            )
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "no reason")
        return DeploymentError(f"the server at {self.address} refused: {last.strip()}")

    @property
    def name(self) -> str:
        """What Flower's configuration calls this server."""
        return _CONNECTION


def _json_in(text: str) -> dict[str, Any] | None:
    """Return the last JSON object that a program wrote among other things."""
    start = text.find("{")
    try:
        found = json.loads(text[start:]) if start >= 0 else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
