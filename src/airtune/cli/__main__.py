"""`python -m airtune.cli`, the same as `airtune`."""

from airtune.cli.main import main

if __name__ == "__main__":
    main()
