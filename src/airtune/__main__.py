"""`python -m airtune`: the command line without the script of the same name."""

from airtune.cli import main

if __name__ == "__main__":
    main()
