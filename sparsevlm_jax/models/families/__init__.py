"""Vision-language models, a file each: which tower, which decoder, and how pictures become tokens of a prompt."""
