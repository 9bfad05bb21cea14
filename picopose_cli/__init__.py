"""PicoPose for BOP: 6D poses of unseen objects from RGB images, masks and CAD models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from picopose_cli.pose.estimator import PoseEstimator

__all__ = ["PoseEstimator", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Return `PoseEstimator`, imported when it is first used: `picopose --help` must not wait for PyTorch."""
    if name != "PoseEstimator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from picopose_cli.pose.estimator import PoseEstimator

    return PoseEstimator
