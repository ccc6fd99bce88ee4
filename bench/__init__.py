"""Benchmarks: whole runs of the unmodified program, timed from outside."""
