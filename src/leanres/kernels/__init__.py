"""Our own kernels."""
