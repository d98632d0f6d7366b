"""CUDA C sources, one file per operation, compiled at run time."""

from pkgutil import extend_path

# In the repository's root this folder would hide the `cuda` packages that CuPy imports.
__path__ = extend_path(__path__, __name__)
