"""BOP folders, targets, cameras, detections and result files: the border where mm become metres."""
