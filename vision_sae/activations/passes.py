"""A resumable pass of a model over pictures; a resumed pass gives the same bits.

A pass goes through its items (picture files, prompts, thumbnails) in units of work. Each unit is
cut into batches, the model processes the batches in order, and a `Sink` stores the results of a
unit whole or not at all. The caller names the units that an earlier run has not stored. Batches
never cross the end of a unit; otherwise a resumed run would have other batches than an
uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Generic, Protocol, TypeVar

import torch
from tqdm import tqdm

from vision_sae.activations.decoding import DecodedBatch, batches_ahead, decode, decode_batches
from vision_sae.models.protocol import Model
from vision_sae.pictures.folder import Picture
from vision_sae.pictures.reading import Reading
from vision_sae.threads import map_in_threads

Item = TypeVar("Item")
Part = TypeVar("Part")
Part_contra = TypeVar("Part_contra", contravariant=True)

Look = Callable[[Sequence[Sequence[Item]]], Iterator[Part]]
"""A function from batches of items to the result of each batch, in order; called once a pass."""


class Sink(Protocol[Part_contra]):
    """The receiver of the results of a pass."""

    def add(self, part: Part_contra) -> None:
        """Take the result of the next batch."""
        ...

    def commit(self, unit: int) -> None:
        """Store the results that were added since the last commit, whole or not at all."""
        ...


@dataclass(frozen=True)
class Pass(Generic[Item, Part]):
    """The units of work of a pass, and the function that processes them."""

    units: Mapping[int, Sequence[Item]]
    """{number: items} of the remaining units, in order."""
    batch_size: int
    """The most items in a batch."""
    look: Look[Item, Part]
    title: str
    """The title of the progress bar."""
    noun: str = "img"
    """The unit of the progress bar's count."""
    done: int = 0
    """The count that an earlier run has reached."""
    size: Callable[[Sequence[Item]], int] = len
    """The function that counts items for the progress bar."""

    def run(self, sink: Sink[Part], *, progress: bool) -> None:
        """Process every unit and commit it to ``sink``; a pass without units does nothing."""
        if not self.units:
            return
        batches = {unit: in_groups(items, self.batch_size) for unit, items in self.units.items()}
        parts = self.look([*chain.from_iterable(batches.values())])
        with tqdm(
            total=self.done + sum(map(self.size, self.units.values())),
            initial=self.done,
            desc=self.title,
            unit=self.noun,
            disable=not progress,
        ) as bar:
            for unit, of_unit in batches.items():
                for batch in of_unit:
                    sink.add(next(parts))
                    bar.update(self.size(batch))
                sink.commit(unit)


def in_groups(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Cut ``items`` into groups of ``size``; the last group may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def one_behind(look: Look[Item, Callable[[], Part]]) -> Look[Item, Part]:
    """A `Look` that finishes what ``look`` begins: each part after the next has begun.

    So an accelerator computes a batch while the host waits for the copies of the one before.
    """

    def finished(batches: Sequence[Sequence[Item]]) -> Iterator[Part]:
        begun = look(batches)
        finish = next(begun, None)
        while finish is not None:
            following = next(begun, None)
            yield finish()
            finish = following

    return finished


def overlapping(
    model: Model,
    begin: Callable[[DecodedBatch], Callable[[], Part]],
    *,
    thumbnail: int,
    reading: Reading,
    apart: bool,
) -> Look[Picture, Part]:
    """`look_at_pictures` for work that ``begin`` starts on a batch, and whose result finishes it.

    On a CPU a batch is finished at once, ``apart`` or not; elsewhere it is finished `one_behind`.
    """
    if model.device.type != "cpu":
        begun = look_at_pictures(model, begin, thumbnail=thumbnail, reading=reading, apart=False)
        return one_behind(begun)

    def see(batch: DecodedBatch) -> Part:
        return begin(batch)()

    return look_at_pictures(model, see, thumbnail=thumbnail, reading=reading, apart=apart)


def across(looks: Sequence[Look[Item, Part]]) -> Look[Item, Part]:
    """A `Look` that gives batches in turns to ``looks``, which run side by side, each in a thread.

    Parts come in the order of the batches.
    """

    def shared(batches: Sequence[Sequence[Item]]) -> Iterator[Part]:
        parts = [look(batches[first :: len(looks)]) for first, look in enumerate(looks)]
        with ThreadPoolExecutor(len(looks)) as pool:
            begun = [pool.submit(next, each) for each in parts[: len(batches)]]
            for number in range(len(batches)):
                place = number % len(looks)
                part = begun[place].result()
                if number + len(looks) < len(batches):
                    begun[place] = pool.submit(next, parts[place])
                yield part

    return shared


def look_at_pictures(
    model: Model,
    see: Callable[[DecodedBatch], Part],
    *,
    thumbnail: int,
    reading: Reading,
    apart: bool,
) -> Look[Picture, Part]:
    """A `Look` that decodes batches of files for ``model`` and applies ``see`` to each batch.

    ``thumbnail`` is the longer side of thumbnails in pixels. With ``apart``, each thread of torch
    decodes and processes its own batch. Otherwise threads decode (on an accelerator, ahead of the
    model), and the calling thread processes one batch at a time. Files that cannot be read are
    skipped, or raise `InvalidInputError` at once when ``reading`` is strict.
    """

    def decoded_and_seen(files: Sequence[Picture]) -> tuple[DecodedBatch, Part]:
        batch = DecodedBatch.of([decode(file, model, thumbnail) for file in files])
        return batch, see(batch)

    def one_by_one(batches: Sequence[Sequence[Picture]]) -> Iterator[tuple[DecodedBatch, Part]]:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            ahead = batches_ahead(model)
            for outcomes in decode_batches(pool, model, batches, thumbnail, ahead=ahead):
                batch = DecodedBatch.of(outcomes)
                yield batch, see(batch)

    def look(batches: Sequence[Sequence[Picture]]) -> Iterator[Part]:
        seen = (
            map_in_threads(decoded_and_seen, batches, torch.get_num_threads())
            if apart
            else one_by_one(batches)
        )
        for batch, part in seen:
            reading.check(batch.skipped)
            yield part

    return look
