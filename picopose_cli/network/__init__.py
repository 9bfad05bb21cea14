"""The PicoPose network in PyTorch: features, matching, affine, offsets and checkpoints."""
