"""Correcting labels by eye: a local page, its server, and the table that comes of it."""
