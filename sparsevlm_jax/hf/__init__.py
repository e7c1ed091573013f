"""Hugging Face's configs: what their classes know, and reading one strictly."""
