"""World: the processes that train one network together. With one of them it changes nothing.

A recipe's `accumulate` splits each batch into parts, and a part is the unit of computation: it has
its own augmentation, mix, random numbers, batch-norm statistics and gradients. A process is only
where some of the parts are computed, and what they give is put together in the order of the parts,
so that the result does not depend on the number of processes, to the last bit.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from leanres.errors import LostProcessError, UserError, first_line
from leanres.metrics.inference import default_batch_size

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

Reduction = Literal["exact", "fast"]
T = TypeVar("T")

JOIN_S = 60  # until all processes must have come
WAIT_S = 1800  # for a process that is alive: it may be decoding the data set, or saving
ALIGNED = 16  # floats: each gradient begins at a multiple of 64 bytes, as PyTorch's own do
EXACT_UP_TO = 8  # processes on one machine for which "exact" is the default


@dataclass(frozen=True)
class Parts:
    """A number of images in `slots` parts, fewer if there are fewer images: as Tensor.chunk."""

    images: int
    slots: int

    @property
    def size(self) -> int:
        """Images of a part; the last one may have fewer."""
        return max(1, math.ceil(self.images / self.slots))

    @property
    def count(self) -> int:
        """The number of parts that have images."""
        return math.ceil(self.images / self.size)


@dataclass(frozen=True)
class World:
    """This process, `rank`, and how many there are. `exact` sums gradients in the parts' order.

    Every process calls each method that communicates, in the same order. LostProcessError where
    another one has ended. `control` is the group for what is not a tensor of the device; `used`
    remembers which parameters get gradients.
    """

    rank: int = 0
    size: int = 1
    exact: bool = True
    local_rank: int = 0
    control: Any = None
    used: MutableMapping[nn.Module, dict[tuple[bool, ...], list[bool]]] = field(
        default_factory=WeakKeyDictionary, compare=False
    )

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def own(self, parts: Parts, rank: int | None = None) -> range:
        """The numbers of the parts that this process (or another) computes."""
        rank = self.rank if rank is None else rank
        first, last = (r * parts.slots // self.size for r in (rank, rank + 1))
        return range(min(first, parts.count), min(last, parts.count))

    def rows(self, parts: Parts, rank: int | None = None) -> slice:
        """Where the images of those parts are among all."""
        own = self.own(parts, rank)
        return slice(*(min(k * parts.size, parts.images) for k in (own.start, own.stop)))

    def counts(self, parts: Parts) -> list[int]:
        """The number of images of each process."""
        rows = [self.rows(parts, rank) for rank in range(self.size)]
        return [r.stop - r.start for r in rows]

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows (n, ...) of all processes, in their order; `counts` says how many each has."""
        if self.size == 1:
            return rows
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in counts]
        with _together():
            dist.all_gather(
                found, padded, group=self.control if rows.device.type == "cpu" else None
            )
        return torch.cat([own[:count] for own, count in zip(found, counts, strict=True)])

    def chosen(self, rows: Tensor, parts: Parts, kept: Tensor) -> Tensor:
        """Of the images at `kept` (M,), ascending among all, those that this process computes.

        rows: this process's own of all; they are exchanged.
        """
        if self.size == 1:
            return rows[kept]
        places = [self.rows(parts, rank) for rank in range(self.size)]
        counts = [int(((kept >= r.start) & (kept < r.stop)).sum()) for r in places]
        first = sum(counts[: self.rank])
        own = kept[first : first + counts[self.rank]] - places[self.rank].start
        return self.gather(rows[own], counts)[self.rows(Parts(len(kept), parts.slots))]

    def sum_in_order(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The sum over all processes' rows (n, L), added one after the other in their order.

        Each process sums a slice of the columns; L is a multiple of their number. "fast" adds them
        in any order: equal within rounding.
        """
        width = rows.shape[1] // self.size
        if not self.exact:
            total = rows.sum(0)
            with _together():
                dist.all_reduce(total)
            return total
        sent = rows.view(len(rows), self.size, width).transpose(0, 1).contiguous()
        came, total = rows.new_empty(sum(counts), width), rows.new_empty(rows.shape[1])
        taken = [count * width for count in counts]
        with _together():
            dist.all_to_all_single(
                came.view(-1), sent.view(-1), taken, [len(rows) * width] * self.size
            )
            own = came[0].clone()
            for row in came[1:]:
                own += row
            dist.all_gather([*total.view(self.size, width).unbind()], own)
        return total

    def predict(self, work: Callable[[Tensor], Tensor], images: Tensor, *outputs: int) -> Tensor:
        """`work(images)`, (N, *outputs), each image by one of the processes.

        Each takes whole batches of the default size, so the result is that of one process.
        """
        if self.size == 1:
            return work(images)
        size = default_batch_size(images)
        batches = math.ceil(len(images) / size)
        bounds = [
            min(rank * batches // self.size * size, len(images)) for rank in range(self.size + 1)
        ]
        own = images[bounds[self.rank] : bounds[self.rank + 1]]
        found = work(own) if len(own) else torch.empty(0, *outputs)
        try:
            return self.gather(found, [b - a for a, b in pairwise(bounds)])
        except LostProcessError:  # this needs no other process; the next step will tell
            return work(images)

    def exchange(self, value: T) -> list[T]:
        """A small value of each process, in their order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _together():
            dist.all_gather_object(found, value, group=self.control)
        return found

    def highest(self, number: int) -> int:
        """The highest of the processes' numbers. It never waits for the device."""
        if self.size == 1:
            return number
        value = torch.tensor([number])
        with _together():
            dist.all_reduce(value, dist.ReduceOp.MAX, group=self.control)
        return int(value)

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """Within it each process works by itself; an error of one is raised in all at its end."""
        problem = ""
        try:
            yield
        except UserError as error:
            if self.size == 1:
                raise
            problem = str(error)
        except Exception as error:
            if self.size > 1:
                self.exchange(f"it failed: {type(error).__name__}: {first_line(error)}")
            raise
        found = self.exchange(problem)
        if len({*found}) == 1 and not problem:
            return
        first = next(rank for rank, text in enumerate(found) if text)
        raise UserError(f"process {first}: {found[first]}" if first else found[0])

    def first_leads(self, work: Callable[[], T]) -> T:
        """What `work` returns, done by the first process and then by the others."""
        return self._in_two_turns(work, self.leads)

    def one_per_machine(self, work: Callable[[], T]) -> T:
        """What `work` returns, done first by one process of each machine, then by the others."""
        return self._in_two_turns(work, self.local_rank == 0)

    def _in_two_turns(self, work: Callable[[], T], is_first: bool) -> T:
        found: list[T] = []
        for turn in (True, False):
            with self.agreed():
                if is_first == turn:
                    found.append(work())
        return found[0]

    def check_equal(self, what: str, value: object) -> None:
        """UserError where a process has another value than the first one."""
        found = self.exchange(value)
        for rank, other in enumerate(found):
            if other != found[0]:
                raise UserError(
                    f"process {rank} has {what} {other}, process 0 has {found[0]}: give all of them"
                    " the same"
                )


ALONE = World()


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """The errors of a collective, which tell of a process that has ended."""
    try:
        yield
    except RuntimeError as error:  # which quotes the library's source, at length
        late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        what = f"does not answer in {WAIT_S // 60} minutes" if late else "has ended"
        raise LostProcessError(f"another process of this training {what}") from error


def _fresh_store(store: Store, rank: int, size: int) -> Store:
    """A part of torchrun's store for these processes alone.

    It still has the addresses of processes that it has started before. So each one writes a name of
    its own, which the first process answers, and which it confirms. UserError where one does not
    come within JOIN_S seconds.
    """
    from torch.distributed.distributed_c10d import PrefixStore

    own, clock = uuid.uuid4().hex, time.monotonic()
    store.set(f"hello/{rank}", own)
    if rank:
        first = store.get(f"go/{own}").decode()
        store.set(f"come/{first}/{rank}", "")
        return PrefixStore(first, store)
    missing = [*range(1, size)]
    while missing:
        if time.monotonic() - clock > JOIN_S:
            raise UserError(
                f"process {missing[0]} of {size} has not come within {JOIN_S} s: start all {size}"
            )
        for other in missing:
            if store.check([f"hello/{other}"]):
                store.set(f"go/{store.get(f'hello/{other}').decode()}", own)
        missing = [other for other in missing if not store.check([f"come/{own}/{other}"])]
        time.sleep(0.02)
    return PrefixStore(own, store)


def launched() -> bool:
    """Whether torchrun, or anything that sets its variables, has started several processes."""
    return _variable("WORLD_SIZE", 1) > 1


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"${name} is {text!r}: start the processes with torchrun, which sets it")
    return int(text)


@contextlib.contextmanager
def joined(reduction: Reduction | None = None, kind: str = "cpu") -> Iterator[World]:
    """The world of the processes that torchrun has started; alone where it has not.

    Without a `reduction` it is exact for up to EXACT_UP_TO processes on one machine. UserError
    where they do not all come within JOIN_S seconds.
    """
    if not launched():
        yield ALONE
        return
    if not dist.is_available():
        raise UserError("this PyTorch was built without torch.distributed: install another build")
    from torch.distributed.rendezvous import rendezvous

    rank, size = _variable("RANK", 0), _variable("WORLD_SIZE", 1)
    backend, patience = "nccl" if kind == "cuda" else "gloo", timedelta(seconds=JOIN_S)
    try:
        store = _fresh_store(next(rendezvous("env://", timeout=patience))[0], rank, size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
        control = dist.new_group(backend="gloo", timeout=timedelta(seconds=WAIT_S))
    except (RuntimeError, ValueError) as error:
        place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError(
            f"process {rank} of {size} did not find the others at {place} ({first_line(error)}):"
            f" start all {size}, on a free port"
        ) from None
    here = _variable("LOCAL_WORLD_SIZE", size)
    exact = (reduction or ("exact" if size <= min(here, EXACT_UP_TO) else "fast")) == "exact"
    if backend == "gloo":
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=WAIT_S), dist.group.WORLD)
    try:
        yield World(rank, size, exact, _variable("LOCAL_RANK", 0), control)
    finally:
        with contextlib.suppress(Exception):  # a group that has lost a process
            dist.destroy_process_group()
