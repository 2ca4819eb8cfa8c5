"""Large objects in a bucket of an S3-compatible server, by obstore.

Parts go up while an object is written, and the server shows it only once the upload is complete. Credentials come from
where the AWS tools look for them (AWS_ACCESS_KEY_ID and so on, or the machine's role); none is kept here."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from kernel.objects import ObjectMissing, Writer

PART_BYTES = 8 << 20
"""Of an upload; S3 takes at most 10,000 parts, so an object may reach 80 GB."""


class Bucket:
    """The objects below a prefix of a bucket, e.g. `s3://company/ratchet`; `endpoint` names a server other than
    AWS's."""

    def __init__(self, url: str, *, endpoint: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc:
            raise ValueError(f"{url!r} is no bucket; write s3://bucket or s3://bucket/prefix")
        options: dict[str, Any] = {}
        if endpoint:
            options = {"endpoint": endpoint, "client_options": {"allow_http": endpoint.startswith("http://")}}
        if prefix := parts.path.strip("/"):
            options["prefix"] = prefix
        self._store = S3Store(parts.netloc, virtual_hosted_style_request=not endpoint, **options)

    @contextmanager
    def writing(self, location: str) -> Iterator[Writer]:
        # Left by an exception, the upload is never completed, and the server forgets its parts.
        upload = obstore.open_writer(self._store, location, buffer_size=PART_BYTES)
        yield upload
        upload.close()

    def chunks(self, location: str) -> Iterator[bytes]:
        try:
            for chunk in obstore.get(self._store, location).stream(min_chunk_size=1 << 20):
                yield bytes(chunk)
        except (BaseError, FileNotFoundError) as error:
            raise ObjectMissing(f"{location} cannot be read: {type(error).__name__}") from error
