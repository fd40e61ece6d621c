"""A clock that keys cannot bear is named before Flower refuses it without a word."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from airtune.deploy.reach import check_clock
from airtune.errors import ConnectionFailedError

DAY_S = 86400.0


class _Clock(BaseHTTPRequestHandler):
    off_s = 0.0
    """How far the server's clock is behind this one."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(time.time() - self.off_s)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def address() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Clock) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("off_s", [0.0, 4.0, -200.0])
def test_a_clock_that_is_about_right_passes(
    address: str, off_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Clock, "off_s", off_s)
    check_clock(address, None)


@pytest.mark.parametrize(
    ("off_s", "says"),
    [(3 * DAY_S, "3 days ahead of"), (-3 * DAY_S, "3 days behind"), (60.0, "ahead of")],
)
def test_a_clock_that_is_wrong_is_named(
    address: str, off_s: float, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Clock, "off_s", off_s)
    with pytest.raises(ConnectionFailedError, match=says):
        check_clock(address, None)


def test_a_server_that_says_no_time_is_left_to_the_connection() -> None:
    check_clock("127.0.0.1:1", None)
