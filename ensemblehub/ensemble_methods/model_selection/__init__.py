"""Model selection, one strategy per file."""
