"""`retrain samples`: what policies wrote, why it was rewarded, and which tokens got credit."""
