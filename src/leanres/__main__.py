"""`python -m leanres` runs the command line, as `leanres` does."""

from leanres.cli import main

main()
