"""Workers that are threads, and shards of a few bytes, for the tests of saving."""

from __future__ import annotations

import threading

BOUND_S = 20


class Group:
    """Workers that are threads of this process and meet at a barrier."""

    def __init__(self, size):
        self.size = size
        self._values = [None] * size
        self._meet = threading.Barrier(size, timeout=BOUND_S)

    def worker(self, rank):
        return Member(self, rank, self.size)

    def gather(self, rank, value):
        self._values[rank] = value
        self._meet.wait()
        values = list(self._values)
        self._meet.wait()
        return values


class Member:
    """One of them (`fulltune.checkpoint.Peers`)."""

    def __init__(self, group, rank, size):
        self.group, self.rank, self.size = group, rank, size

    def gather(self, value):
        return self.group.gather(self.rank, value)

    def barrier(self):
        self.gather(None)


class Shard:
    """A shard that is written when it may be."""

    def __init__(self, rank, content=b"state", bytes=5, error=None):
        self.rank, self.content, self.bytes, self.error = rank, content, bytes, error
        self.go = threading.Event()

    def write(self, folder):
        assert self.go.wait(BOUND_S)
        if self.error is not None:
            raise self.error
        file = folder / f"shard-{self.rank}.pt"
        file.write_bytes(self.content)
        return [file]


def ready(rank=0, **settings):
    shard = Shard(rank, **settings)
    shard.go.set()
    return shard


def together(size, work):
    """Runs `work(member)` as every worker; the results, or what each raised."""
    group, results = Group(size), [None] * size

    def run(rank):
        try:
            results[rank] = work(group.worker(rank))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
        assert not thread.is_alive(), "a worker hangs"
    return results
