"""Training and comparing of sufficiency judges."""
