"""`python -m redraft` is the command `redraft`."""

from redraft.cli.main import main

main()
