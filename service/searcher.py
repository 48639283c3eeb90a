"""Searches in the service: looks that wait in the batcher with all other images, within the room and the time there
are. What is looked at, and what follows from it, is `service.search`'s."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

from service.artifact import ArtifactMetadata
from service.batcher import Answer, Batcher, seconds_of_last
from service.decode_pool import DecodePool
from service.errors import BadImage, DeadlineExceeded, Overloaded, ServiceError, Unavailable
from service.geometry import Region
from service.imaging import Photo, Raster
from service.observing import Searched
from service.search import MAX_PIXELS, Search
from service.settings import Settings

_TO_ANSWER_S = 0.05
"""What a search leaves of the time until the deadline, for the answer to be composed and sent."""
_AT_ONCE = 8
"""Photographs that are searched at a time, the others wait: each is in memory, decoded (service.search.MAX_PIXELS)."""


@dataclass(slots=True)
class Doubtful:
    """An answer that a search of its region, in the photograph, may better."""

    photo: Photo
    region: Region
    answer: Answer


class Searcher:
    """Searches photographs for a model with this `metadata`: they are decoded in `pool`, and looked at through
    `batcher`. `observe` is told what came of each search."""

    def __init__(
        self,
        metadata: ArtifactMetadata,
        pool: DecodePool,
        batcher: Batcher,
        settings: Settings,
        observe: Callable[[Searched], None],
    ) -> None:
        self._metadata = metadata
        self._pool = pool
        self._batcher = batcher
        self._observe = observe
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._photos = 0  # those included that wait for their turn
        self._most_photos = settings.max_images  # so that a request that has all may have all of them searched
        self._most_looks = settings.max_queue_images // 2

    async def search(self, doubtful: Iterable[Doubtful], ahead_s: float, deadline: float) -> None:
        """Betters the answers of those where it can. `ahead_s` is what it took to decode them, where that is not in
        their answers; `deadline` is in the event loop's time."""
        by_photo: dict[Photo, list[Doubtful]] = {}
        for one in doubtful:
            by_photo.setdefault(one.photo, []).append(one)
        async with asyncio.TaskGroup() as searches:
            for of_photo in by_photo.values():
                decode_s = max(ahead_s, *[one.answer.decode_s for one in of_photo])
                searches.create_task(self._search(of_photo, decode_s, deadline - _TO_ANSWER_S))

    async def _search(self, doubtful: Sequence[Doubtful], decode_s: float, stop_at: float) -> None:
        """Searches regions of one photograph, which is decoded once for all of them, presumably in `decode_s`. Without
        the room or the time (until `stop_at`, the event loop's) their first looks remain the answers."""
        photo, waiting = doubtful[0].photo, list(doubtful)
        self._photos += 1
        try:
            if self._photos > self._most_photos:
                raise Overloaded("as many photographs as may be are being searched")
            async with asyncio.timeout_at(stop_at), self._turn:
                _check_time(decode_s, stop_at)
                if self._pool.is_full:
                    raise Overloaded("too much is being decoded for a search")
                started = perf_counter()
                (raster,) = await self._pool.map(partial(Photo.raster, max_pixels=MAX_PIXELS), [photo], stop_at)
                for one in doubtful:
                    one.answer = replace(one.answer, decode_s=one.answer.decode_s + perf_counter() - started)
                while waiting:
                    found = await self._search_region(raster, waiting[0], stop_at)
                    self._observe("found" if found else "nothing")
                    del waiting[0]
        except (TimeoutError, DeadlineExceeded, Unavailable, BadImage):
            for _ in waiting:
                self._observe("given_up")
        finally:
            self._photos -= 1

    async def _search_region(self, raster: Raster, doubtful: Doubtful, stop_at: float) -> bool:
        """Whether there is something to be found; then it is the answer."""
        search, round_s = Search(doubtful.region, self._metadata), 0.0
        while search.regions:
            _check_time(round_s, stop_at)
            if self._batcher.taken + len(search.regions) > self._most_looks:
                raise Overloaded("searches take half of the queue at most")
            started = perf_counter()
            images = [partial(raster.view, region, self._metadata.input_size) for region in search.regions]
            looks = await self._batcher.compute(images, stop_at)
            round_s = perf_counter() - started
            doubtful.answer = _after(doubtful.answer, looks)
            search.saw([look.outputs if isinstance(look, Answer) else look for look in looks])
        if search.found is None:
            return False
        doubtful.answer = replace(doubtful.answer, outputs=search.found)
        return True


def _after(answer: Answer, looks: Iterable[Answer | ServiceError]) -> Answer:
    """The answer, given after these looks."""
    queue_s, decode_s, inference_s = seconds_of_last(looks)
    return replace(
        answer,
        queue_s=answer.queue_s + queue_s,
        decode_s=answer.decode_s + decode_s,
        inference_s=answer.inference_s + inference_s,
    )


def _check_time(expected_s: float, stop_at: float) -> None:
    """Raises DeadlineExceeded where something that takes so long would not be done by then."""
    if asyncio.get_running_loop().time() + expected_s >= stop_at:
        raise DeadlineExceeded("there is no time left for a search")
