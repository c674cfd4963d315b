"""The learning-rate range test: run it, analyse its curve, plot it."""
