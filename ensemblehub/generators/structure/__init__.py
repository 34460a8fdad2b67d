"""Answers in a response format or with tool calls: what is asked for, the grammar, and the calls in what is written."""
