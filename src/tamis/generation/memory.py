"""How many rows fit the memory there is, and which errors say that they did not."""

import torch
from transformers.cache_utils import DynamicCache

from tamis import environment
from tamis.generation.forward import Forward

MOST_ROWS_CPU = 128
MOST_ROWS = 512
_SHARE = 0.5
_LOGIT_COPIES = 3
_SIGNS = ("out of memory", "DefaultCPUAllocator", "can't allocate memory")


def rows_that_fit(forward: Forward, longest: int, limit: int) -> int:
    """Return how many rows of up to `longest` tokens, `limit` of them sampled, fit half of the memory that is free now.

    At least 1 and at most 512 (on a CPU 128: more rows make its products no faster). A row's keys and values (and states)
    are measured on a sequence of one token and one of two; besides them it has three float32 copies of its logits.
    """
    one, two = (_cache_bytes(forward, length) for length in (1, 2))
    kept = one + (two - one) * (longest - 1)
    row = kept + 4 * _LOGIT_COPIES * forward.vocabulary + 32 * limit
    most = MOST_ROWS_CPU if forward.device.type == "cpu" else MOST_ROWS
    return max(1, min(most, int(_SHARE * free_bytes(forward.device)) // row))


def free_bytes(device: torch.device) -> int:
    """Return the free memory of `device` in bytes; of a CPU, within what this process may use (`environment.memory`)."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return environment.memory().free


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that an allocation failed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(sign in str(error) for sign in _SIGNS)


def _cache_bytes(forward: Forward, length: int) -> int:
    cache = DynamicCache(config=forward.config)
    forward.last([[0] * length], cache)
    held = [value for layer in cache.layers for value in vars(layer).values()]
    return sum(value.nbytes for value in held if isinstance(value, torch.Tensor))
