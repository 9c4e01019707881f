"""Credit assignment: rewards of groups -> token advantages."""
