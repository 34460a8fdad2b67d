"""Benchmarks, one per file: what is asked, and whether an answer is right."""
