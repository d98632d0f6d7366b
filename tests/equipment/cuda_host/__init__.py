"""Runs the project's CUDA kernels on the CPU, on CPU tensors: see README.md."""

from tests.equipment.cuda_host.host import HostSource, cuda_on_host, recorded_launches

__all__ = ["HostSource", "cuda_on_host", "recorded_launches"]
