"""The learning-rate range test: run it, read its curve, draw it."""
