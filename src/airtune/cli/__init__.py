"""The command line: wiring only, one file a verb."""

import sys

from airtune.errors import RunInterruptedError

__all__ = ["main"]


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    try:
        from airtune.cli.main import invoke
    except KeyboardInterrupt:  # the imports take a second, and nothing has begun
        sys.exit(RunInterruptedError.exit_code)
    sys.exit(invoke(sys.argv[1:]))
