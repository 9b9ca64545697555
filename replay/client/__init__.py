"""What actors, the learner and the controller hold of replay: a Producer sends rows, a Client asks for groups."""

from replay.client.client import Claim, Client
from replay.client.producer import Producer

__all__ = ["Claim", "Client", "Producer"]
