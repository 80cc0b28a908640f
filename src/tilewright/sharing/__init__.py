"""Export of runs as models, with model cards."""
