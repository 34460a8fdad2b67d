"""Continuous batching for local models: the scheduler, its rows, sampling and the prefix cache."""
