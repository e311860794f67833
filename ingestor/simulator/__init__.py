"""A provider of our own: a real Socket.IO and HTTP server on loopback, for the commands ``demo`` and ``simulate``.

``random_walk`` computes values, ``market`` makes rows of them, ``tokens`` issues and checks JWTs, ``rest_api`` answers
requests, ``sessions`` holds who subscribed to what, ``socket_server`` (Socket.IO 4) and ``socket_server_09`` send
packets, and ``server`` combines them. The tests extend it with faults: tests/support/faulty_simulator.py.
"""

from ingestor.simulator.market import Market
from ingestor.simulator.server import Simulator

__all__ = ["Market", "Simulator"]
