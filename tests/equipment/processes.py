"""What the tests of several processes share."""

import socket
import time

import torch.distributed as dist


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def leave_group() -> None:
    """Destroys the process group, once its threads have let go of the last tensors: torch 2.6 waits
    for them with Python's lock in hand, which they need for that.
    """
    dist.barrier()
    time.sleep(0.5)
    dist.destroy_process_group()
