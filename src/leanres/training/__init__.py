"""Training: recipe, optimizers, engine, the loop, and what keeps a run safe."""
