"""`python -m picopose_cli`: the command line."""

from picopose_cli.cli import main

if __name__ == "__main__":
    main()
