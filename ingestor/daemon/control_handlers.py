"""The commands that the running daemon carries out for others, by their name on the control socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ingestor.daemon.control_socket import ControlFunction, ControlResponse, InvalidRequest
from ingestor.daemon.reload import ConfigReloader
from ingestor.monitoring.status import Status
from ingestor.pipeline.dead_letters import requeue_dead_letters
from ingestor.repair import RepairWorker, backfill_requests
from ingestor.spool.spool import Spool
from ingestor.store.open_database import open_database


def build_handlers(
    *, status: Callable[[], Status], reloader: ConfigReloader, repair: RepairWorker, spool: Spool, database_url: str
) -> dict[str, ControlFunction]:
    """Return the daemon's handlers for ``control_server``."""

    async def send_status(_request: dict[str, Any]) -> ControlResponse:
        return {"status": status().to_json().decode()}

    async def retry_dead_letters(request: dict[str, Any]) -> ControlResponse:
        ids = request.get("ids") or []
        if not isinstance(ids, list) or any(type(id_) is not int or not 0 < id_ < 1 << 63 for id_ in ids):
            raise InvalidRequest("ids must be a list of the ids of dead letters")
        # Not over the writer's connection, which it would have to replace.
        with open_database(database_url, known_server=lambda: spool.server) as engine:
            return {"retried": await requeue_dead_letters(spool, engine, ids)}

    async def reload(_request: dict[str, Any]) -> ControlResponse:
        return await reloader.reload()

    async def backfill(request: dict[str, Any]) -> ControlResponse:
        try:
            requests = backfill_requests.from_json(request.get("requests"))
        except ValueError as error:
            raise InvalidRequest(f"requests: {error}") from None
        return {"repairs": await repair.request(requests)}

    return {"status": send_status, "retry": retry_dead_letters, "reload": reload, "backfill": backfill}
