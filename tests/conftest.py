import os

# One thread a process: tiny models are faster so, processes run side by side, and forked children cannot hang in a pool.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings

settings.register_profile("tamis", deadline=None, max_examples=50)
settings.load_profile("tamis")
