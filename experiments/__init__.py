"""What networks reach when they are trained alike: ``python -m experiments NAME``."""
