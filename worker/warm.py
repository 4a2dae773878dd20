"""Imported by the parent that trainers are forked from, so that each starts with everything loaded.

Nothing here touches a GPU or computes: neither CUDA nor pools of threads survive a fork. The threads
that libraries start when they are loaded are the allocator's and BLAS's own, which expect it.
"""

import gc
import signal

import psycopg  # noqa: F401  loaded with the first connection otherwise
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite.pysqlite  # noqa: F401
import torch._dynamo  # noqa: F401  the first optimizer would load it, which takes seconds
from sqlalchemy.orm import configure_mappers

import worker.jobs  # noqa: F401

# The first statement would do it.
configure_mappers()

# Who stops a whole process group or container means the worker, which looks after its trainers;
# this process ends with the last of them.
signal.signal(signal.SIGTERM, signal.SIG_IGN)

# What is there now is there to stay. A trainer that looked through all of it for garbage would write to
# every page that it shares with this process: 0.7 s on its way to the first step.
gc.collect()
gc.freeze()
