"""A stand-in for the provider: a real Socket.IO and HTTP server on loopback that says what the provider would say.

``values`` are a seeded random walk, ``market`` makes rows and payloads of them, ``tokens`` issues and checks JWTs,
``http`` answers requests, ``wire`` is the server underneath, ``server`` the provider with the knobs that tests turn.
Nothing here is on the way of the data; only ``demo``, ``simulate`` and tests start it.
"""

from ingestor.simulator.market import Market
from ingestor.simulator.rest_api import Fault
from ingestor.simulator.server import Emission, Simulator
from ingestor.simulator.sessions import SubscribeRequest

__all__ = ["Emission", "Fault", "Market", "Simulator", "SubscribeRequest"]
