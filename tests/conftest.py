import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings

settings.register_profile("tamis", deadline=None, max_examples=50)
settings.load_profile("tamis")
