"""`python -m leanres` is `leanres`."""

from leanres.cli import main

main()
