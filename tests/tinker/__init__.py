"""A stand-in for the Tinker service on loopback, and tests against it. See `standin.py`."""
