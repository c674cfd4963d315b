"""leanres: small residual networks for small images."""

from leanres.version import __version__

__all__ = ["__version__"]
