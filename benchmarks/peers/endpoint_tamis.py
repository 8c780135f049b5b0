"""tamis's side of `benchmarks/endpoint.py`: a worker that asks through `Endpoint.generate`."""

import time

from harness import serve

from tamis.models import load, resolve
from tamis.records import Law, Message, Prompt


def work(base: str, requests: int, flying: int) -> dict[str, float]:
    model = load(resolve(f"{base}#m"), concurrency=flying)
    prompts = [Prompt((Message("user", f"question {i} " + "x" * 400),)) for i in range(requests)]
    started, cpu = time.perf_counter(), time.process_time()
    drawn = model.generate(prompts, Law(), candidates=[(0,)] * requests, seed=0)
    answers = sum(c.finish_reason == "stop" for c in drawn)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu, "answers": answers}


serve(work)
