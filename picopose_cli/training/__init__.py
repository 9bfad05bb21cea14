"""Training: data on the device, losses, loop, state, validation and MegaPose shards."""
