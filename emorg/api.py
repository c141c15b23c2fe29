"""Many requests to an OpenAI-compatible server at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from openai import AsyncOpenAI

RETRIES = 6  # with the client's backoff: about half a minute, or as long as the server's retry-after asks
Item = TypeVar("Item")
Result = TypeVar("Result")


def ask_all(
    items: Iterable[Item],
    ask: Callable[[AsyncOpenAI, Item], Awaitable[Result]],
    *,
    url: str,
    key: str,
    connections: int,
    timeout: float,
) -> Iterator[tuple[Item, Result]]:
    """(item, result) as they come, with `connections` under way; `timeout` is in seconds a request.

    Raises what `ask` raises. The client retries by itself what may pass.
    """
    with asyncio.Runner() as runner:
        coming = _ask_all(items, ask, url, key, connections, timeout)

        async def following() -> tuple[Item, Result] | None:
            return await anext(coming, None)

        try:
            while (found := runner.run(following())) is not None:
                yield found
        finally:
            runner.run(coming.aclose())


async def _ask_all(
    items: Iterable[Item],
    ask: Callable[[AsyncOpenAI, Item], Awaitable[Result]],
    url: str,
    key: str,
    connections: int,
    timeout: float,
) -> AsyncGenerator[tuple[Item, Result]]:
    from openai import AsyncOpenAI, DefaultAioHttpClient

    async with AsyncOpenAI(
        api_key=key, base_url=url, max_retries=RETRIES, timeout=timeout, http_client=DefaultAioHttpClient()
    ) as client:

        async def one(item: Item) -> tuple[Item, Result]:
            return item, await ask(client, item)

        waiting, under_way = iter(items), set[asyncio.Task[tuple[Item, Result]]]()
        try:
            while True:
                for item in waiting:
                    under_way.add(asyncio.create_task(one(item)))
                    if len(under_way) >= connections:
                        break
                if not under_way:
                    return
                done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
