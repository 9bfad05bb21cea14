"""Training: samples, targets, losses and the loop."""
