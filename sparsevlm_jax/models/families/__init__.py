"""Vision-language models, a file each: which tower, which decoder, and how pictures become tokens of a prompt.

Importing this enters them into the registry; see `family`.
"""

from . import llava, llava_next, llava_onevision

__all__ = ["llava", "llava_next", "llava_onevision"]
