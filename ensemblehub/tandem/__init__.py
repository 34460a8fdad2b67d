"""What Tandem is made of: insights and levels, features, the sufficiency judge, calibration."""
