"""A chat server that answers every request after a fixed delay, at next to no cost: `endpoint_server.py DELAY_SECONDS`.

Prints its port on the first line. `GET /stats` gives the answers so far and the most requests that were in flight.
"""

import asyncio
import json
import sys

DELAY = float(sys.argv[1])
TOKENS = [{"token": f"w{i}", "logprob": -0.25 * (i % 7), "bytes": None, "top_logprobs": []} for i in range(32)]
CHOICE = {
    "index": 0,
    "message": {"role": "assistant", "content": " ".join(t["token"] for t in TOKENS)},
    "logprobs": {"content": TOKENS},
    "finish_reason": "stop",
}
USAGE = {"prompt_tokens": 40, "completion_tokens": 32, "total_tokens": 72}
BODY = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [CHOICE], "usage": USAGE}


def response(body: object) -> bytes:
    content = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content) + content


ANSWER = response(BODY)
MODELS = response({"data": [{"id": "m"}]})


class Chat(asyncio.Protocol):
    """One connection; the counts are those of the whole server."""

    answered = in_flight = most = 0

    def connection_made(self, transport):
        self.transport, self.received = transport, b""

    def data_received(self, data):
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end:
            return
        if head.startswith(b"GET /stats"):
            self.transport.write(response({"answered": Chat.answered, "most": Chat.most}))
        elif head.startswith(b"GET"):
            self.transport.write(MODELS)
        else:
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            if len(body) < length:
                return
            Chat.in_flight += 1
            Chat.most = max(Chat.most, Chat.in_flight)
            asyncio.get_running_loop().call_later(DELAY, self.answer)
        self.received = b""

    def answer(self):
        Chat.in_flight -= 1
        Chat.answered += 1
        self.transport.write(ANSWER)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Chat, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
