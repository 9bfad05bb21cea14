"""A coloured mesh of an object from photographs with known camera poses and masks."""
