"""`python -m picopose_cli`: the command line."""

from picopose_cli.cli import main

main()
