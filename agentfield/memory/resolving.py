"""Resolving: from what the log holds to what users see. Every read goes through here.

Owns: fetching values that lie in objects and decrypting personal ones before a record is decoded, and applying the
schemas of the memory that reads. Must not know: how objects are stored, how records are found. Invariant: a value is
given whole and as its key's schema has it, or there is an error that says what is wrong with which event; never None in
its place, unless it was erased: that is for good, and no error.
"""

from __future__ import annotations

from typing import Any

from agentfield.codec import Record, decode_data, decode_entry, decode_event, had_run_out, reference_of
from agentfield.errors import DecodeError
from agentfield.event import Entry, Event
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.objects import CorruptObject, MissingObject
from agentfield.header import EVENT_HEADER
from agentfield.memory.encrypting import known, opened
from agentfield.schema import Schemas
from agentfield.value import validate_as


class Resolver:
    """Gives the values, entries and events of records. Cheap to make: one for each operation will do.

    Every method raises :class:`DecodeError` (the record is not agentfield's, its object is missing or damaged, its
    encryption was tampered with, or the value does not fit its schema), :class:`UnavailableError` (its object or its
    key cannot be read now), and :class:`InvalidInputError` if several schemas are bound to its key, or the package that
    decrypts is missing. Ask ``known`` first whether a value is erased: an event says so, a value would be None.
    """

    __slots__ = ("_fabric", "_schemas")

    def __init__(self, fabric: Fabric, schemas: Schemas | None = None) -> None:
        self._fabric = fabric
        self._schemas = schemas

    async def value(self, record: Record, as_type: Any = None) -> Any:
        """The value a record sets; with ``as_type``, validated into that type instead of the one its schema says."""
        record = await self._whole(record)
        if record.erased:
            return None
        subjects, schemas = self._fabric.subjects, self._schemas
        if as_type is None:
            return decode_data(record, subjects, schemas)
        if schemas:
            schema = schemas.of(subjects.parse(record.subject)[1])
            if schema is not None and schema.model is as_type:
                return decode_data(record, subjects, schemas)
        return validate_as(decode_data(record, subjects), as_type)

    async def content(self, record: Record) -> bytes | None:
        """The JSON of the value a record sets, as it was written; None if it was erased."""
        whole = await self._whole(record)
        if whole.erased:
            return None
        return whole.payload if whole.content is None else bytes(whole.content)

    async def entry(self, record: Record) -> Entry:
        """The entry of a record that sets a value."""
        whole = await self._whole(record)
        if whole.erased:
            whole = whole._replace(content=b"null")
        return decode_entry(whole, self._fabric.subjects, schemas=None if whole.erased else self._schemas)

    def event_at_hand(self, record: Record, previous: Record | None = None) -> Event | None:
        """The same as :meth:`event`, where nothing has to be fetched or decrypted for it, as nearly always; else None.

        Raises only what is wrong with the event.
        """
        if _is_whole(record) and (previous is None or _is_whole(previous)):
            return decode_event(record, self._fabric.subjects, previous, schemas=self._schemas)
        return None

    async def event(self, record: Record, previous: Record | None = None) -> Event:
        """The event of a record, given the one before it of the same key."""
        record = await self._whole(record)
        if previous is not None and not had_run_out(previous, record):
            previous = await self._whole(previous)
        return decode_event(record, self._fabric.subjects, previous, schemas=self._schemas)

    async def _whole(self, record: Record) -> Record:
        """The record with the value's JSON in it, wherever that lies."""
        if _is_whole(record):
            return record
        reference = reference_of(record)
        if reference is None or record.content is not None:
            return await opened(self._fabric, record)
        record = await known(self._fabric, record)
        if record.erased:
            return record
        try:
            record = record._replace(content=await self._fabric.objects.get(reference))
        except (MissingObject, CorruptObject) as fault:
            raise DecodeError(
                f"the value of this event cannot be read: {fault}", subject=record.subject, revision=record.sequence
            ) from None
        return await opened(self._fabric, record)


def _is_whole(record: Record) -> bool:
    """Whether the record's value lies in its payload as it is, or nowhere any more."""
    packed = record.headers.get(EVENT_HEADER, "")
    return record.erased or not ('"object"' in packed or '"encrypted"' in packed)
