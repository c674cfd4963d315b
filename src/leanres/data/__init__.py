"""Images in memory: sources -> splits of uint8 tensors -> augmented batches."""
