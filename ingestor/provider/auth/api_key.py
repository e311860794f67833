"""The API key and the file it was read from. A new key in that file is used without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from pydantic import SecretStr

from ingestor.config.secret_file import SecretFile
from ingestor.config.secrets import read_api_key
from ingestor.core.redaction import redactor
from ingestor.core.threads import run_in_daemon_thread
from ingestor.errors import ConfigError

POLL_SECONDS = 2.0  # between two reads of the file


class ApiKey:
    """The current API key. ``on_changed`` listeners are called when it changes."""

    def __init__(self, value: SecretStr, file: SecretFile | None = None) -> None:
        """``file``: where it was read from; None if it came from the environment."""
        self.value = value
        self.on_changed: list[Callable[[], object]] = []
        self._file = file
        self._watcher: asyncio.Task[None] | None = None

    def replace(self, value: SecretStr, file: SecretFile | None) -> bool:
        """Use this key, from this file, from now on. Return whether it differs from the previous one."""
        self._file = file
        if value == self.value:
            return False
        redactor.add(value.get_secret_value())
        self.value = value
        for listener in self.on_changed:
            listener()
        return True

    async def reload(self) -> bool:
        """Use what the file holds now; return whether the key changed. Raises ConfigError if the file is unusable."""
        file = self._file
        if file is None:
            return False
        value = await run_in_daemon_thread(partial(read_api_key, file), "key file")
        return file is self._file and self.replace(value, file)  # else ``replace`` was called meanwhile

    def watch(self, on_error: Callable[[ConfigError], None]) -> None:
        """Poll the file until it holds another key, or ``unwatch``. Call ``on_error`` once for each different error."""
        if self._file is not None and (self._watcher is None or self._watcher.done()):
            self._watcher = asyncio.create_task(self._poll(on_error), name="key file")

    def unwatch(self) -> None:
        """Stop polling."""
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    async def _poll(self, on_error: Callable[[ConfigError], None]) -> None:
        last_error = ""
        while True:
            try:
                if await self.reload():
                    return
                last_error = ""
            except ConfigError as error:
                if str(error) != last_error:
                    last_error = str(error)
                    on_error(error)
            except OSError:
                pass  # no thread: the next poll reads the file
            await asyncio.sleep(POLL_SECONDS)
