"""Arguments that are paths, of this system or of an object store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastenh.remote import RemoteUsageError, is_address, parse


class Place(click.Path):
    """A ``click.Path`` that also accepts addresses such as ``s3://bucket/key``; only local paths are checked."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and is_address(value):
            try:
                return parse(value)
            except RemoteUsageError as error:
                self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)
