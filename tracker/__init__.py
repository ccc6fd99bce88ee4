"""Keeps GitHub's deployment records true: what runs is recorded, and so is what is gone."""

__all__ = ["__version__"]

__version__ = "0.1.0"
