"""How models work together: which of them take part, and how their outputs become one."""
