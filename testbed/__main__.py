"""`python -m testbed up|down|run`; see the package."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from testbed.federation import compare, federation
from testbed.network import down, up, why_not
from testbed.spec import DEFAULT, SpecError, read_spec

SKIPPED = 77
"""Exit code where no test bed can be made, as test runners know it."""


def main() -> int:
    """Do what the command line says and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m testbed", description=__doc__)
    parser.add_argument("verb", choices=("up", "down", "run"))
    parser.add_argument("--spec", type=Path, default=DEFAULT, help="YAML file with the devices")
    parser.add_argument("--folder", type=Path, help="where logs and records go; none = a new one")
    parser.add_argument("--keep", action="store_true", help="run: leave the network up")
    parser.add_argument("recipe", nargs="*", help="run: recipe and settings as for airtune run")
    told = parser.parse_intermixed_args()
    reason = why_not()
    if reason:
        print(f"skipped: {reason}", file=sys.stderr)
        return SKIPPED
    try:
        spec = read_spec(told.spec)
    except SpecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if told.verb == "down":
        down(spec)
        return 0
    down(spec)
    up(spec)
    if told.verb == "up":
        return 0
    folder = told.folder or Path(tempfile.mkdtemp(prefix="testbed-"))
    recipe, *settings = told.recipe or ["recipes/demo.yaml"]
    try:
        with federation(spec, folder) as made:
            done = made.run(str(Path(recipe).resolve()), settings)
        for row in compare(Path(done["folder"])):
            print(
                f"round {row.round}: predicted {row.predicted_s:.2f} s ({row.low_s:.2f} to "
                f"{row.high_s:.2f}), measured {row.measured_s:.2f} s (compute {row.compute_s:.2f}, "
                f"link {row.link_s:.2f}, rest {row.wait_s:.2f})"
            )
        print(f"logs and records: {folder}")
    finally:
        if not told.keep:
            down(spec)
    return 0


if __name__ == "__main__":
    sys.exit(main())
