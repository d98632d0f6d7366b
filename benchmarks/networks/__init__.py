"""The rows of whole networks, a file each; :mod:`benchmarks.harness.registry` finds them."""
