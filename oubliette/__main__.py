"""``python -m oubliette``."""

from oubliette.cli.main import main

main()
