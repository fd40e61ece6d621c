"""How the findings of a check are shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from airtune.cli.console import print_json, print_table
from airtune.errors import DeploymentError

if TYPE_CHECKING:
    from airtune.deploy.preflight import Finding


def show(findings: Iterable[Finding], *, as_json: bool) -> None:
    """Print findings.

    Raises:
        DeploymentError: if one is a fault; after they are printed.
    """
    found = list(findings)
    if as_json:
        print_json({"findings": [asdict(one) for one in found]})
    else:
        print_table(
            "", ["check", "result", "reason"], [[one.what, one.verdict, one.why] for one in found]
        )
    faults = [one.what for one in found if one.verdict == "fault"]
    if faults and not as_json:
        raise DeploymentError(f"failed checks: {', '.join(faults)}; the reasons are above")
    if faults:
        raise typer.Exit(DeploymentError.exit_code)
