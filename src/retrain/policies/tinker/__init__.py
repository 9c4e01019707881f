"""The policy on the Tinker service: sampling and training happen there, the loop here.

Only `access`, `paths` and `download` may be imported where the SDK may be missing.
"""
