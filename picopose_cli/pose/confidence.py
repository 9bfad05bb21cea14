"""Confidence."""


def refined_confidence(flow_support: float, match_support: float, mask_iou: float) -> float:
    """Return."""
    return min(flow_support * mask_iou, 1.0)
