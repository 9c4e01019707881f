"""What the test servers on loopback share: HTTP, planned faults, and an account of the calls."""
