"""The contracts of engines, strategies and tasks as checks that run on any of them, also outside this package."""
