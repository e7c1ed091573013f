"""Vision-language models in JAX with visual-token sparsification."""
