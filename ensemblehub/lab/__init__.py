"""The laboratory: what measures and trains. Nothing outside this package imports it."""
