"""Output aggregation, one strategy per file."""
