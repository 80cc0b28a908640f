"""Metrics on tensors and folders of images."""
