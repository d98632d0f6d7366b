"""Runs the PTX that NVRTC makes of the project's CUDA kernels on the CPU: see README.md."""

from tests.equipment.ptx.run import Launch, PtxSource, ptx_on_host

__all__ = ["Launch", "PtxSource", "ptx_on_host"]
