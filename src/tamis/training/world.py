"""Where a training runs: device, precision, and the other processes of it."""

from collections.abc import Iterator, Mapping, Sequence

import torch

BUCKET_ELEMENTS = 2**25
"""Gradient elements summed over processes in one message: 128 MB in float32."""


class World:
    """Device, precision and processes of this training, as accelerate finds them (its launcher's variables, the machine).

    `dtype` is "auto", "float32" or "bfloat16"; auto is bfloat16 on a GPU that has it and float32 elsewhere.
    """

    def __init__(self, dtype: str = "auto") -> None:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
        self.device: torch.device = state.device
        self.size: int = state.num_processes
        self.rank: int = state.process_index
        self.wait = state.wait_for_everyone
        on_gpu = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.half = dtype == "bfloat16" or (dtype == "auto" and on_gpu)

    @property
    def main(self) -> bool:
        """Whether this process writes the files and reports."""
        return self.rank == 0

    def precision(self) -> torch.autocast:
        """Return the context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def reseed(self, seed: int) -> None:
        """Seed the generator that dropout draws from on this device (and the CPU's)."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def place(self, module: torch.nn.Module) -> None:
        """Move `module` to the device. Parameters that train are at least float32, all of them when the forward pass is."""
        module.to(self.device)
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and tensor.itemsize < 4 and (tensor.requires_grad or not self.half):
                tensor.data = tensor.data.float()

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the sums over all processes, by key; a key that a process does not have counts 0 there."""
        if self.size == 1:
            return dict(values)
        from accelerate.utils import gather_object

        sums: dict[str, float] = {}
        for given in gather_object([dict(values)]):
            for key, value in given.items():
                sums[key] = sums.get(key, 0.0) + value
        return sums

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; a missing one counts 0."""
        if self.size == 1:
            return
        for bucket in _buckets(parameters):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([g.reshape(-1) for g in grads])
            torch.distributed.all_reduce(flat)
            for parameter, part in zip(bucket, flat.split([g.numel() for g in grads]), strict=True):
                parameter.grad = part.view_as(parameter).clone()


def _buckets(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    for parameter in parameters:
        full = sum(p.numel() for p in bucket) + parameter.numel() > BUCKET_ELEMENTS
        if bucket and (full or bucket[0].dtype != parameter.dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    yield bucket
