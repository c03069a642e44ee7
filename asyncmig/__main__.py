"""The entry point: `asyncmig`, or `python -m asyncmig`."""

import sys
from importlib.util import find_spec

__all__ = ["main"]


def main() -> None:
    """Run the command line. If its extra is missing, print how to install it, and exit with 1."""
    if find_spec("typer") is None or find_spec("rich") is None:
        sys.exit("The command line needs its extra. Install it with: pip install 'asyncmig[cli]'")
    try:
        from asyncmig.cli.app import run_app

        run_app()
    except KeyboardInterrupt:  # before a command has begun
        sys.exit(130)


if __name__ == "__main__":
    main()
