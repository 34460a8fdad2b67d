"""The server: an OpenAI-compatible HTTP API over ensembles.  Only this package knows FastAPI."""
