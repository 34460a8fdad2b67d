"""The built-in models without torch: numpy alone."""
