"""OpenAI's client with an end to every try: by the clock and by the size of the answer.

The client's own timeout is for each read, so that a server which sends a byte now and then is waited for without end.
Here the whole try, from connecting to the last byte, has one deadline; only an event loop can cut it off at any point.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from types import ModuleType
from typing import Any

LONGEST_BODY = 8 * 2**20  # bytes of an answer, decompressed; a verdict with its reasons has a few thousand


class BoundedClient:
    """Asks for chat completions; may be used from several threads.

    Args:
        openai: the package, which takes long to import.
        timeout: seconds for one try as a whole.
        retries: further tries after those that ended too late, were too long or lost, and statuses that pass.
    """

    def __init__(self, openai: ModuleType, *, api_key: str, base_url: str, timeout: float, retries: int):
        self._loop = _event_loop()  # here, not in the threads: they could make one each at the same time
        self._client = openai.AsyncOpenAI(
            api_key=api_key,
            base_url=base_url,
            timeout=timeout,
            max_retries=retries,
            http_client=_bounded_http_client(openai, timeout),
        )

    def complete(self, **request: Any) -> Any:
        """The chat completion; blocks. Raises what the package raises."""
        return self._wait_for(self._client.chat.completions.create(**request))

    def complete_text(self, **request: Any) -> Any:
        """The completion of a text, by the older endpoint that gives log-probabilities; as `complete` otherwise."""
        return self._wait_for(self._client.completions.create(**request))

    def close(self) -> None:
        """Closes the connections."""
        self._wait_for(self._client.close())

    def _wait_for(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _bounded_http_client(openai: ModuleType, timeout: float) -> Any:
    import httpx2  # what openai sends its requests with; it retries after these errors and no others

    class BoundedHttpClient(openai.DefaultAsyncHttpxClient):
        async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            try:
                async with asyncio.timeout(timeout):
                    response = await super().send(request, **options | {"stream": True})
                    try:
                        return await whole(response)
                    finally:
                        await response.aclose()
            except TimeoutError:
                raise httpx2.ReadTimeout(f"no whole answer within {timeout:g} s", request=request) from None

    async def whole(response: httpx2.Response) -> httpx2.Response:
        body = bytearray()
        async for part in response.aiter_bytes():
            body += part
            if len(body) > LONGEST_BODY:
                words = f"the answer is longer than {LONGEST_BODY // 2**20} MiB"
                raise httpx2.RemoteProtocolError(words, request=response.request)
        about_transfer = ("content-encoding", "content-length", "transfer-encoding")
        headers = [(name, value) for name, value in response.headers.multi_items() if name not in about_transfer]
        return httpx2.Response(response.status_code, headers=headers, content=bytes(body), request=response.request)

    # The body of a redirect would be read without a limit, and the texts sent to whom nobody named.
    return BoundedHttpClient(timeout=timeout, follow_redirects=False)


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One for the process, in a thread that ends with it."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop
