"""Schemas: who may attach with which, and what differs.

A schema is one canonical text, ``repr(numpy.lib.format.dtype_to_descr(dtype))``; "" stands for bytes.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

from shmdriver._native import lib
from shmdriver.driver.leases import Lease
from shmdriver.driver.rejection import Rejection
from shmdriver.driver.streams import Stream
from shmdriver.errors import Reason

__all__ = ["check_consumer_schema", "check_producer_schema", "schema_difference"]

SHOWN = 8


def check_producer_schema(
    stream: Stream, schema: str, demanded: str | None, owner: Callable[[Lease], str]
) -> None:
    """Raises Rejection unless ``schema`` is what configuration demands and live consumers declared.

    ``owner`` names a lease's client. A consumer that declared nothing takes what comes.
    """
    if demanded is not None and schema != demanded:
        difference = schema_difference(schema or "bytes", demanded)
        raise Rejection(
            Reason.SCHEMA, f"stream {stream.name!r}: configuration demands another schema: {difference}"
        )
    data = schema.encode()
    offered = int(lib.shmd_hash(data, len(data), 0)) if data else 0
    for consumer in stream.consumers:
        declared = int(consumer.record.schema_hash)
        if declared not in (0, offered):
            # After an adoption only the hash of what it declared is left.
            known = consumer.schema or (stream.schema if int(stream.record.schema_hash) == declared else "")
            difference = schema_difference(schema or "bytes", known or "another schema")
            raise Rejection(
                Reason.SCHEMA,
                f"stream {stream.name!r}: its consumer {owner(consumer)} expects another schema: "
                f"{difference}",
            )


def check_consumer_schema(
    stream: Stream, schema: str, owner: Callable[[Lease], str], *, configured: bool
) -> None:
    """Raises Rejection when the stream, or another consumer of it, has another schema than ``schema``."""
    if not schema:
        return
    binding = stream.producer is not None or bool(stream.epochs) or configured
    if binding and schema != stream.schema:
        difference = schema_difference(stream.schema or "bytes", schema)
        raise Rejection(Reason.SCHEMA, f"stream {stream.name!r} has another schema: {difference}")
    for other in stream.consumers:
        if other.schema not in (None, schema):
            difference = schema_difference(other.schema or "", schema)
            raise Rejection(
                Reason.SCHEMA,
                f"stream {stream.name!r} has no producer yet, and its consumer {owner(other)} "
                f"expects another schema: {difference}",
            )


def schema_difference(found: str, expected: str) -> str:
    """What differs, field by field, in words for an answer's text. ``found`` is the stream's."""
    fields_found, fields_expected = _fields(found), _fields(expected)
    if fields_found is None or fields_expected is None:
        return f"the stream carries {found[:200]}, expected {expected[:200]}"
    lines = []
    for name in fields_expected:
        if name not in fields_found:
            lines.append(f"{name}: missing, expected {fields_expected[name]}")
        elif fields_found[name] != fields_expected[name]:
            lines.append(f"{name}: {fields_found[name]}, expected {fields_expected[name]}")
    lines += [
        f"{name}: {fields_found[name]}, not expected" for name in fields_found if name not in fields_expected
    ]
    if not lines:
        lines = [f"the fields' order: {', '.join(fields_found)}, expected {', '.join(fields_expected)}"]
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more


def _fields(text: str) -> dict[str, str] | None:
    """Name -> type of a structured description; None when it is not one."""
    try:
        described = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(described, list):
        return None
    fields: dict[str, str] = {}
    for position, entry in enumerate(described):
        if not isinstance(entry, tuple) or len(entry) not in (2, 3):
            return None
        name = entry[0] if isinstance(entry[0], str) and entry[0] else f"#{position}"
        shape = f" x {entry[2]}" if len(entry) == 3 else ""
        fields[name] = f"{entry[1]}{shape}"
    return fields
