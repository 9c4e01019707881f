"""A policy that samples at a server with the OpenAI API, and is updated on this machine."""
