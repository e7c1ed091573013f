"""The errors and warnings this library names, apart from plain ValueError."""


class CheckpointError(ValueError):
    """A folder, file or hub id that cannot be read or written as a checkpoint; the message names it."""


class CheckpointWarning(UserWarning):
    """A checkpoint that can be used, but that holds something its owner should know of (NaN weights, say)."""
