"""`retrain diff`: two runs, two conditions or two campaigns side by side."""
