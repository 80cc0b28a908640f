"""Export of a run as a model folder, and its model card."""
