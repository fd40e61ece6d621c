"""`airtune operator`: who may submit, follow and stop runs from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from airtune.cli.console import print_json, print_line, print_table
from airtune.cli.options import AsJson, Ca, Key
from airtune.cli.server import State
from airtune.deploy import DEFAULT_STATE
from airtune.errors import DeploymentError

app = typer.Typer(help="Add, list and revoke operators and their keys.", no_args_is_help=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the operator.")],
    *,
    role: Annotated[
        str,
        typer.Option(
            help="view: list and follow runs; run: also submit and stop them; admin: also name a method that is a file at the server."
        ),
    ] = "run",
    state: State = DEFAULT_STATE,
    public_key: Annotated[
        Path | None,
        typer.Option(help="Public key that the operator made; otherwise a key is made here."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add an operator; commands on the server's own machine need none.

    A folder is made with what belongs to the operator: key, certificate and the server's ca.crt.

    Example: airtune operator add ada --role run
    """
    from airtune.deploy.server.enroll import enroll
    from airtune.deploy.server.register import OPERATORS

    chosen = next((known for known in OPERATORS if known == role), None)
    if chosen is None:
        raise DeploymentError(f"--role must be one of {', '.join(OPERATORS)}, got {role!r}")
    [(one, folder)] = enroll(state, {name: public_key}, role=chosen)
    if as_json:
        print_json(
            {
                "name": one.name,
                "role": one.role,
                "fingerprint": one.fingerprint,
                "folder": str(folder),
            }
        )
        return
    print_line(f"{one.name}: {one.role}, key {one.fingerprint}, copy {folder} to the operator")


@app.command("list")
def list_(*, state: State = DEFAULT_STATE, as_json: AsJson = False) -> None:
    """List operators, their roles and the state of their keys."""
    from airtune.deploy.server.register import Register

    operators = Register(state).operators.values()
    if as_json:
        print_json(
            {
                "operators": [
                    {
                        "name": one.name,
                        "role": one.role,
                        "added": one.added,
                        "fingerprint": one.fingerprint,
                        "revoked": one.revoked or None,
                    }
                    for one in operators
                ]
            }
        )
        return
    print_table(
        "",
        ["operator", "role", "key", "added", "revoked"],
        [[one.name, one.role, one.fingerprint, one.added, one.revoked or "-"] for one in operators],
    )


@app.command()
def renew(
    *,
    server: Annotated[str, typer.Option(help="HOST[:PORT] of the server.")],
    ca: Ca = None,
    key: Key = None,
) -> None:
    """Replace your key by a new one; the old one holds until the new one has been used.

    Example: airtune operator renew --server edge.example.org --ca ca.crt --key operator.key
    """
    from airtune.cli.remote import link_to
    from airtune.deploy.renew import renew as renew_key

    link = link_to(DEFAULT_STATE, server, ca, key)
    renew_key(link)
    print_line(
        f"the new key is in {link.proof.key if link.proof else '-'}; keep no copy of the old"
    )


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the operator.")],
    *,
    state: State = DEFAULT_STATE,
) -> None:
    """Refuse an operator from now on."""
    from airtune.deploy.server.register import Register

    one = Register(state).revoke(name, operator=True)
    print_line(f"{name} is revoked (key {one.fingerprint})")
