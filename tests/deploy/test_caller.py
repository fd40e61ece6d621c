"""What a caller is told when what answers is not a server's port for calls."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from airtune.deploy.caller import ServerClient
from airtune.errors import DeploymentError


def test_a_port_that_knows_no_such_call_is_told_apart():
    server = grpc.server(ThreadPoolExecutor(1))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with pytest.raises(DeploymentError, match="takes no runs and no devices: name the server"):
            ServerClient(address, None).call("Status")
    finally:
        server.stop(None)
