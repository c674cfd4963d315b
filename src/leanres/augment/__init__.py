"""Augmentations and mixes: batched functions on tensors, one independent draw per image."""
