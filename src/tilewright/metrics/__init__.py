"""Metrics of images, captions and codebooks."""
