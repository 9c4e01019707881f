"""An OpenAI-compatible inference server for tests, and tests of it. See `server.py`."""
