"""The words that the built-in models were trained with, used by Tandem's profile `builtin` and by `fuse`."""

INSIGHT_REQUEST = "Give insights only."
INSIGHT_GUIDE = "Use the insights."
INSIGHT_HEADER = "\nInsights:\n"
CANDIDATES_HEADER = "\nCandidate answers:\n"
