"""How many records of a job are in memory at a time, and that none comes before another."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import pyarrow as pa
import pytest

from service.scoring.records import Position, Record
from service.scoring.run import batched, in_order


class Lazy:
    """An engine whose rows are made when somebody waits for them."""

    def __init__(self, in_flight: int) -> None:
        self.in_flight = in_flight
        self.under_way = self.most = 0

    def submit(self, records: Sequence[Record]) -> "Future[pa.RecordBatch]":
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        engine = self

        class Rows(Future[pa.RecordBatch]):
            def result(self, timeout: float | None = None) -> pa.RecordBatch:
                engine.under_way -= 1
                return pa.record_batch({"id": [record.id for record in records]})

        return Rows()


@pytest.mark.parametrize(("count", "size", "in_flight"), [(0, 4, 3), (3, 4, 3), (40, 4, 1), (41, 4, 3), (41, 7, 100)])
def test_batches_come_in_order_and_no_more_are_taken_than_may_be_in_flight(
    count: int, size: int, in_flight: int
) -> None:
    taken = 0

    def stream() -> Iterator[Record]:
        nonlocal taken
        for index in range(count):
            taken += 1
            yield Record(str(index), "", b"", Position(index), 0)

    engine, ids, done = Lazy(in_flight), [], 0
    for records, rows in in_order(engine, batched(stream(), size)):
        assert [record.id for record in records] == rows["id"].to_pylist()
        ids += rows["id"].to_pylist()
        done += len(records)
        assert taken <= done + size * in_flight
    assert ids == [str(index) for index in range(count)]
    assert engine.most <= in_flight
