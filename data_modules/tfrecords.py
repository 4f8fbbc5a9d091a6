"""TFRecord files of `tf.train.Example` messages, read without TensorFlow.

A record consists of the message's length (8 bytes), the checksum of the length (4), the message, and the message's
checksum (4, not verified here because GZIP has its own); all little-endian. An Example is a protocol buffer,

    Example {1: Features}   Features {1: map<string, Feature>}   Feature {1: BytesList | 2: FloatList | 3: Int64List}

in which the lists have repeated values as field 1.
"""

import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from implicit_slate.errors import UserError


def read_records(path: Path) -> Iterator[bytes]:
    """The messages of a file, GZIP-compressed or not. UserError if it is not a TFRecord file, or damaged."""
    count = 0
    try:
        with open(path, "rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file = gzip.GzipFile(fileobj=raw) if compressed else raw
            while header := file.read(12):
                if len(header) == 12 and struct.pack("<I", masked_crc32c(header[:8])) != header[8:]:
                    raise UserError(f"{path}: expected a TFRecord file; record {count} does not begin like one")
                length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
                message = file.read(length)
                if len(header) < 12 or len(message) < length or len(file.read(4)) < 4:
                    raise UserError(f"{path}: the file ends within record {count}; expected a whole one")
                count += 1
                yield message
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: expected a file that can be read, record {count} is damaged ({error})") from None


def features(example: bytes) -> dict[str, memoryview]:
    """The features of an Example by name, to be read by the functions below. ValueError if it is not an Example."""
    found = {}
    for _, inner in _fields(memoryview(example)):
        for _, entry in _fields(inner):
            parts = dict(_fields(entry))
            found[bytes(parts[1]).decode()] = parts[2]
    return found


def joined_bytes(feature: memoryview) -> np.ndarray:
    """All bytes of a BytesList, uint8 (n,)."""
    payload = _list(feature, 1)
    values = np.frombuffer(payload, np.uint8)
    # The multi-object data sets store every byte as a value of its own: tag 10, length 1, the byte.
    if len(values) % 3 == 0 and (values[0::3] == 10).all() and (values[1::3] == 1).all():
        return values[2::3]
    return np.frombuffer(b"".join(value for _, value in _fields(payload)), np.uint8)


def floats(feature: memoryview) -> np.ndarray:
    """The values of a FloatList, float32 (n,)."""
    return np.frombuffer(b"".join(values for _, values in _fields(_list(feature, 2))), "<f4")


def _list(feature: memoryview, kind: int) -> memoryview:
    lists = dict(_fields(feature))
    if set(lists) != {kind}:
        raise ValueError(f"a feature of kind {kind} expected, kinds {sorted(lists)} found")
    return lists[kind]


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Field number and content of each field of a protocol buffer. Varint fields do not occur here."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag & 7 == 2:
            length, position = _varint(message, position)
        elif tag & 7 == 5:
            length = 4
        else:
            raise ValueError(f"a field of wire type {tag & 7}")
        if position + length > len(message):
            raise ValueError("a field longer than its message")
        yield tag >> 3, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position == len(message):
            raise ValueError("a number cut off")
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position
