"""PicoPose for BOP: 6D poses of unseen objects from RGB images, masks and CAD models."""

__version__ = "0.1.0"
