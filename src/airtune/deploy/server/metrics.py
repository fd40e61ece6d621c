"""What Prometheus reads of a server: its devices and all its runs, in its text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from airtune.deploy.server.register import Register
from airtune.deploy.server.site import is_held, local_link, running
from airtune.deploy.server.watching import summary
from airtune.errors import AirtuneError, DeploymentError


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure."""

    name: str
    value: float
    labels: Mapping[str, str]
    kind: str = "gauge"


def metrics(state: Path) -> str:
    """Return the figures of a server's folder, of valid devices alone."""
    revoked = {one.name for one in Register(state).devices.values() if one.revoked}
    samples = [
        *_of_server(state),
        *(
            sample
            for folder in sorted((state / "runs").glob("*"))
            for sample in _of_run(folder, _stamp(folder))
        ),
    ]
    return _text(sample for sample in samples if sample.labels.get("device") not in revoked)


def _of_server(state: Path) -> Iterator[Sample]:
    """Yield whether the server runs, and what it says of devices and runs."""
    is_up = is_held(state)
    yield Sample("airtune_server_up", float(is_up), {})
    if not is_up:
        return
    try:
        said = local_link(running(state)).call("List")
    except AirtuneError:  # it starts or ends at this moment
        return
    for row in said["devices"]:
        yield Sample(
            "airtune_device_online", float(row["status"] != "offline"), {"device": row["name"]}
        )
    for status, count in sorted(Counter(row["status"] for row in said["runs"]).items()):
        yield Sample("airtune_runs", float(count), {"status": status})


def _stamp(folder: Path) -> tuple[int, ...]:
    paths = (folder / name for name in ("rounds.jsonl", "result.json"))
    return tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in paths)


@lru_cache(maxsize=256)
def _of_run(folder: Path, stamp: tuple[int, ...]) -> tuple[Sample, ...]:
    """Return a run's figures; they are read again when its records have changed."""
    try:
        said = summary(folder)
    except AirtuneError:  # between two writes of a round, or no run
        return ()
    run = {"run": folder.name}
    found = [
        Sample("airtune_rounds_done", said["done"], run),
        Sample("airtune_rounds_planned", said["rounds"], run),
        Sample("airtune_run_finished", float(said["finished"]), run),
        Sample("airtune_upload_bytes_total", said["upload_bytes"], run, "counter"),
        Sample("airtune_download_bytes_total", said["download_bytes"], run, "counter"),
    ]
    last = said["last_rounds"][-1] if said["last_rounds"] else {}
    found += [
        Sample(f"airtune_{name}", last[name], run)
        for name in ("round_s", "train_loss", "validation")
        if last.get(name) is not None
    ]
    for row in said["devices"]:
        labels = run | {"device": row["name"]}
        found.append(Sample("airtune_device_ok", float(row["status"] == "ok"), labels))
        if row["finish_s"] is not None:
            found.append(Sample("airtune_device_round_seconds", row["finish_s"], labels))
    return tuple(found)


def _text(samples: Iterator[Sample]) -> str:
    """Write samples as Prometheus reads them: those of one name together, after their kind."""
    named: dict[str, list[Sample]] = {}
    for sample in samples:
        named.setdefault(sample.name, []).append(sample)
    lines = []
    for name, of_name in named.items():
        lines.append(f"# TYPE {name} {of_name[0].kind}")
        lines += [f"{name}{_labels(one.labels)} {float(one.value)!r}" for one in of_name]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    r"""Return labels in braces.

    >>> _labels({"run": 'a "b"'}), _labels({})
    ('{run="a \\"b\\""}', '')
    """
    if not labels:
        return ""
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    said = (f'{key}="{value.translate(escapes)}"' for key, value in labels.items())
    return "{" + ",".join(said) + "}"


def metrics_server(state: Path, host: str, port: int) -> ThreadingHTTPServer:
    """Listen at an address for Prometheus; whoever reaches it can read.

    Raises:
        DeploymentError: if the address cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        """Answers every path alike."""

        timeout = 10.0

        def do_GET(self) -> None:
            """Answer with the metrics of now."""
            try:
                body, code = metrics(state).encode(), 200
            except AirtuneError as error:
                body, code = f"{error}\n".encode(), 503
            self.send_response(code)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise DeploymentError(
            f"cannot serve metrics at {host}:{port}: {error.strerror or error}"
        ) from error
