"""Export a trained network to one file, checked on real images before it is kept."""
