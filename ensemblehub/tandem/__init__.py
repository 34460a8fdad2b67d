"""The parts of Tandem: insights and levels, features, the sufficiency judge, calibration."""
