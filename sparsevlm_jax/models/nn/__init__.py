"""What modules of every architecture are made of: attention, RoPE, linear layers, the KV cache, reading of configs."""
