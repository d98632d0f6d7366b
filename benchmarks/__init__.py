"""Speed of every operation against its peers: ``python -m benchmarks.run``."""
