"""PyTorch checkpoints into this library's parameters."""
