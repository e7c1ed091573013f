"""Language models, a file each."""
