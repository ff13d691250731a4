"""From scores to ranks, metrics and tables."""
