"""The manifest of an output folder in an object store: a key for each finished file, and one for each claim.

A store cannot add to a key or lock it, but it makes a key only where there is none, and it replaces one as a whole.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastenh import remote
from fastenh.enhance.manifest import Manifest, parse

FOLDER = ".fastenh-manifest"
_SIGN_OF_LIFE = 20.0  # seconds between two that the owner of a claim gives
_LOST = 90.0  # seconds without one, by the clock of whoever waits: the owner is dead
_LOOK = 5.0  # seconds between two looks at what somebody else has claimed


class RemoteManifest(Manifest):
    """FOLDER/.fastenh-manifest/NAME.json for each file NAME that is finished, and NAME.claim while it is made."""

    def __init__(self, folder: Path, settings: dict[str, Any], job: str) -> None:
        super().__init__(folder, settings, job)
        self._fs, key = remote.opened(folder)
        self._place = f"{key.rstrip('/')}/{FOLDER}"
        self._began = time.time()
        self._held: set[str] = set()
        self._seen: dict[str, tuple[bytes, float, float]] = {}  # claims of others: content, since when, last look
        self._closed = threading.Event()
        threading.Thread(target=self._live, daemon=True).start()

    @contextmanager
    def claim(self, target: Path) -> Iterator[bool]:
        """The claim is a key that its owner writes again and again: who dies stops, and after 90 s others take over.

        Two processes may then believe that it is theirs; both make the same file, and the last one stays.
        """
        key = f"{self._place}/{self.key(target)}.claim"
        mine = self._take(key)
        try:
            yield mine
        finally:
            if mine:
                with self._lock:
                    self._held.discard(key)
                    with suppress(Exception):  # who looks on finds no sign of life
                        self._fs.rm_file(key)

    def _take(self, key: str) -> bool:
        content, since, looked = self._seen.get(key, (b"", 0.0, 0.0))
        now = time.monotonic()
        if content and now - looked < _LOOK:
            return False
        with remote.reported(self.folder):
            try:
                self._create(key)
            except FileExistsError:
                found = self._content(key)
                if found is None:  # it has gone meanwhile
                    return False
                since = since if found == content else now
                lost = now - since > _LOST or json.loads(found).get("job") == self.job  # a worker that was lost
                self._seen[key] = found, since, now
                if not lost:
                    return False
                self._write(key)
        with self._lock:
            self._held.add(key)
        self._seen.pop(key, None)
        return True

    def _create(self, key: str) -> None:
        self._fs.pipe_file(key, self._sign(), mode="create")

    def _write(self, key: str) -> None:
        self._fs.pipe_file(key, self._sign())

    def _sign(self) -> bytes:
        return json.dumps({"job": self.job, "sign": uuid.uuid4().hex}).encode()

    def _content(self, key: str) -> bytes | None:
        self._fs.invalidate_cache(key.rpartition("/")[0])
        try:
            return self._fs.cat_file(key)
        except FileNotFoundError:
            return None

    def _live(self) -> None:
        while not self._closed.wait(_SIGN_OF_LIFE):
            with self._lock, suppress(Exception):  # of the network: the next one may pass
                for key in self._held:
                    self._write(key)

    def is_recent(self, target: Path) -> bool:
        """By the clocks of the machines, which must agree."""
        entry = self.entry(target)
        return entry is not None and entry.get("finished", 0.0) > self._began

    def entry(self, target: Path) -> dict[str, Any] | None:
        with remote.reported(self.folder):
            content = self._content(f"{self._place}/{self.key(target)}.json")
        return None if content is None else parse(content)

    def keep(self, entry: dict[str, Any]) -> None:
        content = json.dumps(entry | {"finished": time.time()}).encode() + b"\n"
        with remote.reported(self.folder):
            self._fs.pipe_file(f"{self._place}/{entry['target']}.json", content)

    def close(self) -> None:
        self._closed.set()
