"""Reports: run folders -> one self-contained page, and each of its figures as a function."""
