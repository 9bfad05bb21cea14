"""From crops to poses: the estimator, correspondences, PnP and the batching pipeline."""
