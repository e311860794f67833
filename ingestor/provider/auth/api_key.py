"""The API key, and the file that it came from: whoever puts another one there need not start the daemon anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from pydantic import SecretStr

from ingestor.config import SecretFile, read_api_key
from ingestor.core.redaction import redactor
from ingestor.core.threads import run_in_daemon_thread
from ingestor.errors import ConfigError

POLL_SECONDS = 2.0  # between looks at the file


class ApiKey:
    """What to log in with now. ``changed`` are told when that is another."""

    def __init__(self, value: SecretStr, file: SecretFile | None = None) -> None:
        """``file``: where it was read from; None if it came from the environment."""
        self.value = value
        self.on_changed: list[Callable[[], object]] = []
        self._file = file
        self._watch: asyncio.Task[None] | None = None

    def replace(self, value: SecretStr, file: SecretFile | None) -> bool:
        """Use this key, of this file, from now on; whether it is another."""
        self._file = file
        if value == self.value:
            return False
        redactor.add(value.get_secret_value())
        self.value = value
        for tell in self.on_changed:
            tell()
        return True

    async def reload(self) -> bool:
        """Use what the file holds now; whether that is another key. Raises ConfigError: what is wrong with the file."""
        file = self._file
        if file is None:
            return False
        value = await run_in_daemon_thread(partial(read_api_key, file), "key file")
        return file is self._file and self.replace(value, file)  # else there is a newer one than was read

    def watch(self, unusable: Callable[[ConfigError], None]) -> None:
        """Look at the file until it holds another key, or ``unwatch``; tell ``unusable`` once what is wrong there."""
        if self._file is not None and (self._watch is None or self._watch.done()):
            self._watch = asyncio.create_task(self._look(unusable), name="key file")

    def unwatch(self) -> None:
        """Look no more."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def _look(self, unusable: Callable[[ConfigError], None]) -> None:
        said = ""
        while True:
            try:
                if await self.reload():
                    return
                said = ""
            except ConfigError as error:
                if str(error) != said:
                    said = str(error)
                    unusable(error)
            await asyncio.sleep(POLL_SECONDS)
