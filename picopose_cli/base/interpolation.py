"""Polynomial interpolation of smooth functions from their values at a few Chebyshev nodes."""

from __future__ import annotations

import numpy as np

from picopose_cli.base.types import Array


def chebyshev_nodes(count: int) -> Array:
    """Return the positions (count,) in [-1, 1] at which a function's values are needed."""
    return np.cos((np.arange(count) + 0.5) * np.pi / count)


def chebyshev_matrix(positions: Array, count: int) -> Array:
    """Return the matrix (P,count) from values at the nodes to those at `positions` (P,) in [-1, 1].

    The error falls exponentially with the number of nodes for functions without a singularity near the interval.
    """
    order = np.arange(count)
    at_nodes = np.cos(order * np.arccos(chebyshev_nodes(count))[:, None])
    at_positions = np.cos(order * np.arccos(np.clip(positions, -1, 1))[:, None])
    weights = np.where(order > 0, 2, 1) / count
    return np.asarray(at_positions @ (weights[:, None] * at_nodes.T))
