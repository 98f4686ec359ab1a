"""Timings of the operator against its rivals; see README.md in this folder."""
