"""Folders on disk: this library's own checkpoint, telling other kinds apart, and writing that leaves nothing half done."""
