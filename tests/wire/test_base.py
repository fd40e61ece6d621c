"""A base model over the real stream: TLS, tokens, limits."""

import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from airtune.errors import ConnectionFailedError, MismatchError
from airtune.wire.contents import contents_of
from airtune.wire.stage import CHUNK_BYTES, Offer, stage_base

grpc = pytest.importorskip(
    "grpc", reason="grpcio is not installed: pip install 'airtune[federation]'"
)
pytest.importorskip("cryptography", reason="pip install 'airtune[federation]'")

from airtune.deploy.server.authority import ensure_certificates  # noqa: E402
from airtune.engine.stream import (  # noqa: E402
    StreamServer,
    Way,
    channel_credentials,
    fetcher,
    server_credentials,
)
from airtune.wire.channel import SERVICE, TOKEN_KEY, open_channel  # noqa: E402

NAME = "b" * 64


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    (folder / "config.json").write_text("{}")
    weights = {"weight": np.frombuffer(os.urandom(5 * CHUNK_BYTES), np.uint8)}
    save_file(weights, folder / "model.safetensors")
    (folder / "secret.txt").write_text("not for you")
    return folder


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory):
    files = ensure_certificates(tmp_path_factory.mktemp("tls"), ["127.0.0.1"])
    server = StreamServer(
        credentials=server_credentials(files.certificate.read_bytes(), files.key.read_bytes())
    )
    yield server, channel_credentials(files.authority.read_bytes())
    server.close()


def offered(server, source, **limits):
    contents = contents_of(source, lambda name: "all")
    target = f"127.0.0.1:{server.port}"
    files = tuple(file.described() for file in contents)
    return target, Offer(target, server.shelf.lend(contents, **limits), files)


def test_a_base_crosses_tls_whole_and_is_counted(secured, source, tmp_path) -> None:
    server, credentials = secured
    target, offer = offered(server, source)
    folder = stage_base(tmp_path, NAME, offer.files, fetcher(Way(target, credentials), offer))
    name = "model.safetensors"
    assert load_file(folder / name).keys() == {"weight"}
    assert (load_file(folder / name)["weight"] == load_file(source / name)["weight"]).all()
    assert (folder / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert not (folder / "secret.txt").exists()
    served = server.shelf.served_bytes(offer.token)
    assert offer.size_bytes < served < 1.01 * offer.size_bytes + 1000


def test_a_wrong_token_is_refused_at_once(secured, source, tmp_path) -> None:
    server, credentials = secured
    target, offer = offered(server, source)
    stranger = Offer(target, "nobody's", offer.files)
    with pytest.raises(MismatchError, match="lets no base model out"):
        stage_base(tmp_path, NAME, offer.files, fetcher(Way(target, credentials), stranger))


def test_no_more_is_served_than_was_granted(secured, source, tmp_path) -> None:
    server, credentials = secured
    left = [3.5 * CHUNK_BYTES]

    def take(size_bytes: int) -> bool:
        if size_bytes > left[0]:
            return False
        left[0] -= size_bytes
        return True

    target, offer = offered(server, source, take=take)
    with pytest.raises(MismatchError, match="do not hold the base model"):
        stage_base(tmp_path, NAME, offer.files, fetcher(Way(target, credentials), offer))
    assert 2 * CHUNK_BYTES < server.shelf.served_bytes(offer.token) <= 3.5 * CHUNK_BYTES


@pytest.mark.parametrize(
    "request_bytes",
    [b"", b"../../etc/passwd", struct.pack("<HQ", 9, 0), struct.pack("<HQ", 65535, 2**63)],
)
def test_nothing_that_a_caller_sends_is_a_path(secured, source, request_bytes) -> None:
    server, credentials = secured
    target, offer = offered(server, source)
    with open_channel(target, credentials) as channel:
        call = channel.unary_stream(f"/{SERVICE}/Base")
        with pytest.raises(grpc.RpcError) as caught:
            list(call(request_bytes, timeout=10, metadata=((TOKEN_KEY, offer.token),)))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_server_that_comes_back_is_asked_for_the_rest(source, tmp_path) -> None:
    first = StreamServer()
    port, waits = first.port, []
    target, offer = offered(first, source)
    back = []

    def return_later(seconds: float) -> None:
        waits.append(seconds)
        if not back:
            server = StreamServer(f"127.0.0.1:{port}")
            server.shelf._lots[offer.token] = first.shelf._lots[offer.token]
            back.append(server)

    ask = fetcher(Way(target), offer)

    def cut(number, offset):
        for place, chunk in enumerate(ask(number, offset)):
            if not back and place == 2:
                closing = threading.Thread(target=first.close, args=(0.0,))
                closing.start()
                closing.join()
            yield chunk

    folder = stage_base(tmp_path, NAME, offer.files, cut, sleep=return_later)
    name = "model.safetensors"
    assert (load_file(folder / name)["weight"] == load_file(source / name)["weight"]).all()
    for server in back:
        server.close()


def test_a_server_that_is_gone_is_said(source, tmp_path) -> None:
    server = StreamServer()
    target, offer = offered(server, source)
    server.close(0.0)
    with pytest.raises(ConnectionFailedError, match="the base model does not come"):
        stage_base(tmp_path, NAME, offer.files, fetcher(Way(target), offer), wait_s=0.3)


def test_one_too_many_to_fetch_waits_for_a_place(source, tmp_path) -> None:
    server, taken, gate, waits = StreamServer(fetches=1), threading.Event(), threading.Event(), []

    def take(size_bytes: int) -> bool:
        taken.set()
        return gate.wait(20)

    def free(seconds: float) -> None:
        waits.append(seconds)
        gate.set()
        first.join()

    def fetch_first() -> None:
        target, slow = offered(server, source, take=take)
        stage_base(tmp_path / "1", NAME, slow.files, fetcher(Way(target), slow))

    first = threading.Thread(target=fetch_first)
    first.start()
    assert taken.wait(20)
    target, offer = offered(server, source)
    ask = fetcher(Way(target), offer)
    folder = stage_base(tmp_path / "2", NAME, offer.files, ask, sleep=free)
    assert waits
    assert (folder / "model.safetensors").stat().st_size > 5 * CHUNK_BYTES
    server.close()
