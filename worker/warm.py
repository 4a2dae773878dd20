"""Imported by the parent that trainers are forked from, so that each starts with everything loaded.

Nothing here touches a GPU or computes: neither CUDA nor pools of threads survive a fork. The threads
that libraries start when they are loaded are the allocator's and BLAS's own, which expect it.
"""

import signal

import torch._dynamo  # noqa: F401  the first optimizer would load it, which takes seconds

import worker.jobs  # noqa: F401

# Who stops a whole process group or container means the worker, which looks after its trainers;
# this process ends with the last of them.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
