"""How good a text is."""
