"""What Flower's server app does: read its order, find the devices, run the rounds, tell of it.

All it tells goes to standard output as lines that begin with a mark; Flower carries them to whoever
follows the run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from airtune.deploy.events import MARK, as_line
from airtune.deploy.federation import Connected, Order, run_federation
from airtune.deploy.keys import ServerFiles
from airtune.deploy.register import Register
from airtune.errors import AirtuneError, MismatchError
from airtune.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from airtune.engine.stream import StreamServer

STATE = "AIRTUNE_STATE"
"""Environment variable with the server's state folder; set by `airtune server`."""
INSECURE = "AIRTUNE_INSECURE"
STREAM_PORT = "AIRTUNE_STREAM_PORT"

NameOf = Callable[[int], str | None]
Connect = Callable[[NameOf | None, Callable[[str], None]], Connected]

__all__ = ["INSECURE", "MARK", "STATE", "run_here"]


def run_here(config: Mapping[str, Any], connect: Connect) -> None:
    """Carry out the run that a Flower app's configuration describes.

    Args:
        config: of the app.
        connect: returns the devices, given how a node's name is found and who is told of oddities.

    Raises:
        AirtuneError: for whatever is wrong, after it was told.
    """
    try:
        order = _order(config)
        state = os.environ.get(STATE)
        is_open = state is None or os.environ.get(INSECURE) == "1"
        register = None if is_open else Register(Path(str(state)))
        names = None if register is None else register.name_of
        nodes = connect(names, lambda text: tell(note=text))
        if state is not None and (Path(state) / "draining").exists():
            raise MismatchError("the server is draining and takes no new run")
        run_federation(order, nodes, tell=tell)
    except AirtuneError as error:
        tell(error={"kind": type(error).__name__, "message": str(error),
                    "exit_code": error.exit_code})  # fmt: skip
        raise


@cache
def _stream() -> tuple[StreamServer, str]:
    """Start the stream of split rounds beside SuperLink, once, with the same certificate."""
    # grpc is needed for split rounds alone
    from airtune.engine.stream import StreamServer, server_credentials

    state, port = os.environ.get(STATE), int(os.environ.get(STREAM_PORT, "0"))
    credentials = None
    if state is not None and os.environ.get(INSECURE) != "1":
        tls = ServerFiles(Path(state) / "tls")
        credentials = server_credentials(tls.certificate.read_bytes(), tls.key.read_bytes())
    host = "0.0.0.0" if state is not None else "127.0.0.1"
    server = StreamServer(f"{host}:{port}", credentials=credentials)
    return server, f":{server.port}"


def tell(**event: Any) -> None:
    """Write an event for whoever follows."""
    print(as_line(event), file=sys.stdout, flush=True)


def _order(config: Mapping[str, Any]) -> Order:
    text, name = str(config.get("recipe") or ""), str(config.get("recipe-file") or "")
    try:
        recipe = Recipe.model_validate_json(text) if text else load_recipe(name or None)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise MismatchError(
            f"the recipe cannot be read at the server: {place}: {first['msg']}; install the same "
            "version of airtune here and there"
        ) from error
    state = os.environ.get(STATE)
    root = Path(recipe.output) if state is None else Path(state) / "runs"
    resume = str(config.get("resume") or "")
    return Order(
        recipe=recipe,
        root=root,
        resume=Path(resume) if resume else None,
        clock="replay" if config.get("clock") == "replay" else "real",
        devices=int(config.get("devices") or 0),
        join_s=float(config.get("join-s") or 600.0),
        silent_s=float(config.get("silent-s") or 1800.0),
        serve=_stream,
    )
