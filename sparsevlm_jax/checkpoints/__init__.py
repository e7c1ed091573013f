"""Folders on disk: this library's own checkpoint, telling other kinds apart, writing that leaves nothing half done."""
