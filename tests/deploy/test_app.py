"""As a Flower app: Flower carries tickets of a few hundred bytes, the stream all else."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'airtune[flower]'")
from flwr.app import Context, RecordDict

from airtune.deploy import app
from airtune.deploy.app import GridNodes
from airtune.engine.stream import StreamServer
from airtune.errors import DeploymentError, MismatchError
from airtune.wire.message import Message as WireMessage

LONG_S = 60.0


class Message:
    """Flower's, without its checks of a message that no server has sent."""

    def __init__(
        self,
        content: RecordDict,
        *,
        dst_node_id: int = 0,
        message_type: str = "query",
        reply_to: "Message | None" = None,
        name: str = "",
    ) -> None:
        self.content = content
        known = {"dst_node_id": dst_node_id, "reply_to_message_id": name}
        self.metadata = type("Metadata", (), known)

    def has_error(self) -> bool:
        return False


class Grid:
    """Flower's way to two nodes in this process; it counts what it carries."""

    def __init__(self) -> None:
        self.replies: dict[str, Message] = {}
        self.sizes: list[int] = []
        self.lock = threading.Lock()
        self.working: list[threading.Thread] = []

    def get_node_ids(self) -> list[int]:
        return [11, 22]

    def push_messages(self, messages: list[Message]) -> list[str]:
        names = []
        for message in messages:
            with self.lock:
                names.append(f"message-{len(self.sizes)}")
                self.sizes.append(len(str(message.content)))
            thread = threading.Thread(target=self._work, args=(names[-1], message), daemon=True)
            self.working.append(thread)
            thread.start()
        return names

    def pull_messages(self, names: list[str]) -> list[Message]:
        with self.lock:
            return [self.replies.pop(name) for name in list(names) if name in self.replies]

    def join(self) -> None:
        for thread in self.working:
            thread.join(LONG_S)

    def _work(self, name: str, message: Message) -> None:
        node = message.metadata.dst_node_id
        context = Context(
            run_id=1,
            node_id=node,
            node_config={"name": f"n{node}"},
            state=RecordDict(),
            run_config={},
        )
        content = app.work(message, context).content
        with self.lock:
            self.replies[name] = Message(content, name=name)


class Echo:
    """A device that answers with what it got, or says why not."""

    def handle(self, message: WireMessage, way: Any) -> WireMessage:
        if message.header == b"refuse":
            raise MismatchError("another model")
        return WireMessage(message.header[::-1], message.blobs)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Grid, GridNodes]]:
    monkeypatch.setattr(app, "_DEVICES", {"recipe": Echo()})
    monkeypatch.setattr(app, "Message", Message)
    server, grid = StreamServer(), Grid()
    yield grid, GridNodes(grid, server.post, f"127.0.0.1:{server.port}", say=print)
    server.close()
    grid.join()  # they use what is patched here


def test_tasks_and_answers_go_by_the_stream(there: tuple[Grid, GridNodes]) -> None:
    grid, nodes = there
    assert nodes.connected() == {"n11": 11, "n22": 22}
    transport = nodes.transport(lambda: dict(enumerate(nodes.connected().values())))
    task = WireMessage(b"task", (bytes(3 << 20),))
    found = transport.send({0: task, 1: task}, deadline_s=LONG_S)
    assert [found[device].message.header for device in (0, 1)] == [b"ksat", b"ksat"]
    assert max(grid.sizes) < 2000


def test_why_a_task_was_not_done_comes_by_flower(there: tuple[Grid, GridNodes]) -> None:
    _, nodes = there
    transport = nodes.transport(lambda: dict(enumerate(nodes.connected().values())))
    began = time.monotonic()
    found = transport.send({0: WireMessage(b"refuse"), 1: WireMessage(b"task")}, deadline_s=LONG_S)
    assert found[0].fault == "another model"
    assert found[1].message is not None
    assert time.monotonic() - began < LONG_S / 2


def test_a_stream_that_others_reach_needs_tls() -> None:
    with pytest.raises(DeploymentError, match="needs TLS: name the folder"):
        app._stream({"stream-address": "edge.example.org:9444"})


def test_flower_takes_the_two_apps() -> None:
    assert callable(app.client)
    assert callable(app.server)
