"""Text and tokens: chat templates, character spans, detokenization and stop strings."""
