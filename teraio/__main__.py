"""``python -m teraio``: the command-line tool."""

from teraio.cli.main import main

main()
