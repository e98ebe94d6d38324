"""Requests that nobody would send on purpose: for every rpc of the contract, from its descriptors.

`request` makes a random message, or changes a few fields of one that is right; `damaged` changes
bytes. `Wire` sends whatever comes of it and says how the server took it.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from vision_sae.v1 import (
    attribution_service_pb2,
    catalog_service_pb2,
    description_service_pb2,
    generation_service_pb2,
    intervention_service_pb2,
    label_job_service_pb2,
    search_service_pb2,
)
from vision_sae.v1.measure_pb2 import ItemError

Field: TypeAlias = Any
"""A `FieldDescriptor`, which protobuf's own types call by several names."""
FILES: tuple[FileDescriptor, ...] = (
    catalog_service_pb2.DESCRIPTOR,
    attribution_service_pb2.DESCRIPTOR,
    intervention_service_pb2.DESCRIPTOR,
    search_service_pb2.DESCRIPTOR,
    description_service_pb2.DESCRIPTOR,
    generation_service_pb2.DESCRIPTOR,
    label_job_service_pb2.DESCRIPTOR,
)
METHODS: tuple[MethodDescriptor, ...] = tuple(
    method
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
)
UNFORESEEN = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNAVAILABLE,
}
"""Codes that no request may lead to, whatever is in it."""
_CLASS_NAME = re.compile(r"\b[A-Z]\w*(Error|Exception|Warning)\b|<class |Traceback|object at 0x")
_F = FieldDescriptor
_NAN, _INFINITY = float("nan"), float("inf")
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e30, -3.4e38, 1e9, _NAN, _INFINITY, -_INFINITY)
_DOUBLES = (*_FLOATS, 5e-324, 1.7e308, -1.7e308)
_NUMBERS: dict[int, Sequence[float | bool]] = {
    _F.TYPE_DOUBLE: _DOUBLES,
    _F.TYPE_FLOAT: _FLOATS,
    _F.TYPE_INT32: (0, 1, 2, 3, 7, 8, 16, 64, -1, 1000, 2**31 - 1, -(2**31)),
    _F.TYPE_INT64: (0, 1, 2, 8, 16, -1, 2**31, 2**63 - 1, -(2**63)),
    _F.TYPE_UINT64: (0, 1, 2**32, 2**63, 2**64 - 1),
    _F.TYPE_BOOL: (False, True),
}
_WORDS = (
    *(
        "",
        " ",
        "\0",
        "a\0b",
        "\n",
        "/",
        "..",
        "a" * 300,
        "a" * 100_000,
        "é" * 400,
        "\U0001f600" * 260,
    ),
    *("\u2028", "\u202e", "%s{}%n", "'; --", '"', '"a', "*", "[", "[!", "(((", "\\"),
    *("-1", "0", "1", "9" * 18, "9" * 4400, "²", "٣", "1e400", "nan", "None", "true"),
    *("index = 1", "max > x", 'text:"', "a AND", " AND ", "max desc", "index,,", "max desc desc"),
    *("count > 1e999", "index = nan", 'described = "', "firing_rate < 0.1 AND text:cat"),
    *("models/tiny", "models/none", "models/", "dictionaries/zoo", "dictionaries/none"),
    *("dictionaries/zoo/features/0", "dictionaries/zoo/features/999999999"),
    *("dictionaries/zoo/features/0/description", "dictionaries/zoo/features/x"),
    *("labelJobs/a", "labelJobs/none", "a" * 64, "0.png", "text", "abstained", "description.text"),
    "123e4567-e89b-12d3-a456-426614174000",
)
_BYTES = (
    b"",
    b"\0",
    b"\xff" * 7,
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"\0" * 64,
    b"\1" * 256,
)


def method(name: str) -> MethodDescriptor:
    """The rpc of a name."""
    return next(method for method in METHODS if method.name == name)


def _scalar(field: Field, source: random.Random) -> Any:
    if field.type == _F.TYPE_STRING:
        return source.choice(_WORDS)
    if field.type == _F.TYPE_BYTES:
        return source.choice(_BYTES)
    if field.type == _F.TYPE_ENUM:
        known = list(field.enum_type.values_by_number)
        return source.choice([*known, -1, 99, 2**31 - 1])
    return source.choice(_NUMBERS[field.type])


def _is_map(field: Field) -> bool:
    kind = field.message_type
    return kind is not None and bool(kind.GetOptions().map_entry)


def _fill(message: Message, field: Field, source: random.Random, depth: int) -> None:
    """Give a field a random value; messages beneath are random too."""
    message.ClearField(field.name)
    if _is_map(field):
        for _ in range(source.choice((1, 2, 70))):
            key = _scalar(field.message_type.fields_by_name["key"], source)
            value = _scalar(field.message_type.fields_by_name["value"], source)
            getattr(message, field.name)[f"{key}{source.random()}"] = value
    elif field.is_repeated:
        count = source.choice((1, 1, 2, 3, 20))
        if field.message_type is None:
            values = [_scalar(field, source) for _ in range(count)]
            getattr(message, field.name).extend(values * source.choice((1, 1, 60)))
        else:
            for _ in range(count if depth else 0):
                _randomise(getattr(message, field.name).add(), source, depth - 1)
    elif field.message_type is None:
        setattr(message, field.name, _scalar(field, source))
    else:
        getattr(message, field.name).SetInParent()
        if depth:
            _randomise(getattr(message, field.name), source, depth - 1)


def _randomise(message: Message, source: random.Random, depth: int = 4) -> None:
    for field in message.DESCRIPTOR.fields:
        if source.random() < 0.5:
            _fill(message, field, source, depth)


def _within(message: Message) -> Iterator[Message]:
    """A message and all that are set in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None or _is_map(field):
            continue
        for each in value if field.is_repeated else (value,):
            yield from _within(each)


def request(
    descriptor: Descriptor, source: random.Random, examples: Sequence[Message] = ()
) -> Message:
    """A message of this type: mostly one of the ``examples`` with one field changed, or two."""
    made: Message = GetMessageClass(descriptor)()
    if not examples or source.random() < 0.1:
        _randomise(made, source)
        return made
    made.CopyFrom(source.choice(examples))
    for _ in range(source.choice((1, 1, 1, 2))):
        place = source.choice(list(_within(made)))
        fields: Sequence[Field] = place.DESCRIPTOR.fields
        if not fields:
            continue
        field = source.choice(fields)
        if source.random() < 0.15:
            place.ClearField(field.name)
        elif field.type == _F.TYPE_BYTES and source.random() < 0.7:  # a broken picture, mostly
            setattr(place, field.name, damaged(getattr(place, field.name), source))
        else:
            _fill(place, field, source, 2)
    return made


def damaged(data: bytes, source: random.Random) -> bytes:
    """Bytes of a message with some changed, cut off, put in or said again."""
    made = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 5))):
        at = source.randrange(len(made) + 1)
        match source.randrange(4):
            case 0:
                made[at : at + 1] = bytes([source.randrange(256)])
            case 1:
                del made[at:]
            case 2:
                made[at:at] = source.randbytes(source.randrange(1, 12))
            case _:
                made += made[at:]
    return bytes(made)


@dataclass(frozen=True)
class Outcome:
    """How a server took what was sent."""

    method: str
    code: grpc.StatusCode
    message: str
    errors: tuple[ItemError, ...] = ()
    """Those of items in the answers."""

    @property
    def unforeseen(self) -> list[str]:
        """Failures, of the call or of an item in its answers, that are of our making."""
        found = [f"{self.method}: {self.code.name} {self.message}"] * (self.code in UNFORESEEN)
        return found + [
            f"{self.method}: an item: {error.code} {error.message}"
            for error in self.errors
            if error.code in {code.value[0] for code in UNFORESEEN}
        ]

    @property
    def class_names(self) -> list[str]:
        """Messages that name a Python class."""
        told = [self.message, *(error.message for error in self.errors)]
        return [f"{self.method}: {text}" for text in told if _CLASS_NAME.search(text)]

    @property
    def faults(self) -> list[str]:
        """All that must not be."""
        return self.unforeseen + self.class_names


class Log(logging.Handler):
    """Keeps what the server says that only our own faults may make it say."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())

    @classmethod
    @contextmanager
    def kept(cls) -> Iterator[Self]:
        """The log of the body."""
        handler = cls()
        logging.getLogger().addHandler(handler)
        try:
            yield handler
        finally:
            logging.getLogger().removeHandler(handler)


class Wire:
    """Sends bytes to any rpc."""

    def __init__(self, channel: grpc.Channel, timeout: float = 20.0) -> None:
        self._channel, self._timeout = channel, timeout

    def send(self, method: MethodDescriptor, messages: Sequence[bytes], most: int = 64) -> Outcome:
        """The outcome of a call, of which at most so many answers are read."""
        kind = ("unary", "stream")[method.client_streaming]
        kind += ("_unary", "_stream")[method.server_streaming]
        name = f"/{method.containing_service.full_name}/{method.name}"
        call = getattr(self._channel, kind)(
            name, None, GetMessageClass(method.output_type).FromString
        )
        sent = iter(messages) if method.client_streaming else messages[0]
        answers = []
        try:
            if method.server_streaming:
                stream = call(sent, timeout=self._timeout)
                for answer in stream:
                    answers.append(answer)
                    if len(answers) == most:
                        stream.cancel()
                        break
            else:
                answers.append(call(sent, timeout=self._timeout))
        except grpc.RpcError as error:
            return Outcome(method.name, error.code(), error.details() or "", _items(answers))
        return Outcome(method.name, grpc.StatusCode.OK, "", _items(answers))


def _items(answers: Sequence[Message]) -> tuple[ItemError, ...]:
    return tuple(each for a in answers for each in _within(a) if isinstance(each, ItemError))


def tries(
    source: random.Random, count: int, examples: Mapping[str, Sequence[Message]]
) -> Iterator[tuple[MethodDescriptor, list[bytes]]]:
    """So many calls of each rpc, each as the bytes of its messages; ``examples`` are right requests
    by the name of their type."""
    for _ in range(count):
        for method in METHODS:
            kind = method.input_type
            right = examples.get(kind.name, ())
            several = source.choice((1, 2, 3)) if method.client_streaming else 1
            made = [request(kind, source, right).SerializeToString() for _ in range(several)]
            if method.client_streaming and right and source.random() < 0.7:
                made = [right[0].SerializeToString(), *made]
            if source.random() < 0.15:
                made[-1] = damaged(made[-1], source)
            yield method, made
