"""Tests ask no hub: huggingface_hub reads this at import, and would try for a minute to reach a model without it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
