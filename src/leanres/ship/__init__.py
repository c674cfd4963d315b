"""Ship a trained network as one file, preprocessing included, checked on real images."""
