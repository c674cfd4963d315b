"""Training: recipe, batches, optimizers, device, and the loop that joins them."""
