"""The `airtune` command: its verbs, and the one place where errors become exit codes."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Annotated

import click
import typer

from airtune.cli import (
    agent,
    calibrate,
    check,
    compare,
    demo,
    device,
    export,
    init,
    listing,
    operator,
    plan,
    probe,
    prune,
    report,
    run,
    server,
    status,
    sweep,
)
from airtune.cli.console import print_error, print_line, print_note
from airtune.errors import AirtuneError, RunInterruptedError, StorageError

app = typer.Typer(
    name="airtune",
    help="Fine-tune a language model across weak, unequal devices that share wireless links.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit codes are listed in docs/exit-codes.md.",
)
for verb in (
    init.init,
    run.run,
    plan.plan,
    calibrate.calibrate,
    prune.prune,
    compare.compare,
    sweep.sweep,
    check.check,
    report.report,
    export.export,
    demo.demo,
    probe.probe,
    agent.agent,
    status.status,
):
    app.command(no_args_is_help=False)(verb)
app.command("list")(listing.list_)
app.add_typer(server.app, name="server")
app.add_typer(device.app, name="device")
app.add_typer(operator.app, name="operator")


def _print_version(*, wanted: bool) -> None:
    if wanted:
        print_line(version("airtune"))
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version",
        callback=lambda value: _print_version(wanted=value),
        is_eager=True,
        help="Print the version and leave.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


@app.callback()
def options(*, version: Version = False, debug: Debug = False) -> None:
    """Declare what stands before a verb; `invoke` reads --debug wherever it stands."""


@cache
def program() -> click.Command:
    """Return all verbs as click reads them; building them takes longer than many a verb."""
    return typer.main.get_command(app)


def invoke(words: Sequence[str]) -> int:
    """Run one command and return its exit code; see `airtune.errors` for the codes.

    Args:
        words: the command line without the program's name. `--debug`, anywhere, adds the
            traceback to an error.
    """
    is_debug = "--debug" in words
    arguments = [word for word in words if word != "--debug"]
    try:
        code = program()(arguments, prog_name="airtune", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except AirtuneError as error:
        return _fail(error, arguments, is_debug=is_debug)
    except (KeyboardInterrupt, click.Abort):
        return _fail(RunInterruptedError("interrupted"), arguments, is_debug=is_debug)
    except OSError as error:
        mapped = StorageError(f"{error.filename or 'the system'}: {error.strerror or error}")
        return _fail(mapped, arguments, is_debug=is_debug)
    except Exception as error:  # the outermost loop of the process: nothing is above it
        if is_debug:
            traceback.print_exc()
        print_note(
            f"error: unexpected {type(error).__name__}: {error}\n"
            "this is a fault of airtune, not of yours; run it again with --debug and report it"
        )
        return 1
    return code if isinstance(code, int) else 0


def _fail(error: AirtuneError, arguments: Sequence[str], *, is_debug: bool) -> int:
    if is_debug:
        traceback.print_exc()
    print_error(error, as_json="--json" in arguments)
    return error.exit_code
