"""The pipeline: collect, train, calibrate, evaluate, report."""
