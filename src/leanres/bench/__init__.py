"""How fast: a training step in parts, seconds to an accuracy, and the same work done by peers."""
