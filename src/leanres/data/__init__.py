"""Data sets in memory: splits of uint8 images, read from several sources."""
