"""The rows of operations and layers, a file each; :mod:`benchmarks.harness.registry` finds them."""
