"""Augmentations and mixes: batched functions on tensors, drawn independently for each image."""
