"""What `eval metric=…` runs: each joins a trained run, its data and a metric into figures."""
