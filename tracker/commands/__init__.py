"""The commands besides `run`, a module each; `tracker.cli` says how they are called."""
