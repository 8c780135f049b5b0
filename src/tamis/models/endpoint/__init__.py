"""A client for any OpenAI-compatible chat server (vLLM, llama.cpp, Ollama, hosted services), capability "text".

Candidates are separate requests, many in flight. Every (prompt, candidate) ends in exactly one completion: a request that
fails for good gives one with finish reason "error" and no text, and its reason in `Endpoint.errors`. What no retry can
mend (a refused key, an unknown model, no server at all) stops the call with a ModelError instead.

`client` asks, `traffic` paces and persists, `wire` writes and reads JSON, `http` moves bytes, `identity` names the model.
The key comes from TAMIS_API_KEY or OPENAI_API_KEY (`keys`) and appears in no error, record or log.
"""

from tamis.models.endpoint.client import Endpoint
from tamis.models.endpoint.identity import endpoint_identity

__all__ = ["Endpoint", "endpoint_identity"]
