"""Speed of every operation and network against its peers: ``python -m benchmarks``."""
