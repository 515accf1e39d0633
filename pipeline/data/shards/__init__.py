"""Stored images: read from disk or through a cache, measured, checked, written in other forms."""
