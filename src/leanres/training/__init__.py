"""Training: recipe, optimizers, device, the loop, and what keeps a run safe."""
