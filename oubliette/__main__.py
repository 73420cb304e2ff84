"""``python -m oubliette``: the same as the ``oubliette`` command."""

from oubliette.cli.main import main

main()
