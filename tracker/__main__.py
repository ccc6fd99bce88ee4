"""`python -m tracker` and the console script `deployment-tracker`."""

from tracker.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
