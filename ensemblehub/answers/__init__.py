"""Answers: what a text's final answer is, and whether two answers are equal."""
