"""``python -m histoweave``: the same as the command ``histoweave``."""

from histoweave.cli import main

main()
