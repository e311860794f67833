"""Command simulate."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer

from ingestor.cli.output import echo


class SimulatedProtocol(StrEnum):
    """Generations of Socket.IO that the simulator serves."""

    SOCKET_IO_4 = "4"
    SOCKET_IO_0 = "0.9"


def simulate(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port on 127.0.0.1. 0: any free port.")] = 0,
    api_key: Annotated[str, typer.Option(help="API key to accept. Default: a random one.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the random walk that produces the values.")] = 0,
    cadence: Annotated[int, typer.Option(min=0, help="Seconds between two values of a ticker. 0: as documented.")] = 0,
    protocol: Annotated[
        SimulatedProtocol, typer.Option(help="Generation of Socket.IO: 4, or 0.9 as in 2014.")
    ] = SimulatedProtocol.SOCKET_IO_4,
) -> None:
    """Run a simulated provider on this machine.

    Prints its URL and API key, then serves until Ctrl-C or SIGTERM.

    \b
    Example:
      ingestor simulate --cadence 1
    """
    import asyncio

    asyncio.run(_serve(port, api_key, seed, cadence, protocol))


async def _serve(port: int, api_key: str, seed: int, cadence: int, protocol: SimulatedProtocol) -> None:
    import asyncio
    import signal

    from ingestor.simulator import Simulator

    window = 60 * (cadence or 60)
    simulator = Simulator(
        seed=seed,
        port=port,
        api_key=api_key or None,
        cadence_seconds=cadence or None,
        window_seconds=window,
        protocol=protocol.value,
    )
    try:
        await simulator.start()
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # asyncio wraps the system's message in its own
        raise typer.BadParameter(f"cannot listen on {port} ({reason}); use another", param_hint="--port") from None
    try:
        echo(f"provider.url: {simulator.url}\nINGESTOR_PROVIDER__API_KEY={simulator.api_key}")
        signaled = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, signaled.set)
        await signaled.wait()
    finally:
        await simulator.stop()
