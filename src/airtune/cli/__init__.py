"""The command line: wiring only, one file a verb."""

from airtune.cli.main import main

__all__ = ["main"]
