"""The provider's token, which opens the socket.

claims   what it says: its life, its feeds, its secrets
login    the API key is traded for one
supply   the one that everybody uses, renewed in time

The token is a secret that contains secrets: its claims repeat the API key, an e-mail address, a password's hash and
salt. They are told to the redactor before anybody else sees the token. Its signature is the provider's business.
"""

from ingestor.provider.auth.claims import Token
from ingestor.provider.auth.token_source import TokenSource, TokenState

__all__ = ["Token", "TokenSource", "TokenState"]
