"""The peer's side of `benchmarks/endpoint.py`: a worker that asks through `AsyncOpenAI`."""

import asyncio
import time

from harness import serve
from openai import AsyncOpenAI


async def ask_all(base: str, requests: int, flying: int) -> int:
    gate = asyncio.Semaphore(flying)
    async with AsyncOpenAI(base_url=base, api_key="none") as client:

        async def ask(i: int) -> bool:
            async with gate:
                answer = await client.chat.completions.create(
                    model="m",
                    messages=[{"role": "user", "content": f"question {i} " + "x" * 400}],
                    temperature=1.0,
                    top_p=1.0,
                    max_tokens=256,
                    seed=i,
                    logprobs=True,
                )
            return answer.choices[0].finish_reason == "stop"

        return sum(await asyncio.gather(*map(ask, range(requests))))


def work(base: str, requests: int, flying: int) -> dict[str, float]:
    started, cpu = time.perf_counter(), time.process_time()
    answers = asyncio.run(ask_all(base, requests, flying))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu, "answers": answers}


serve(work)
