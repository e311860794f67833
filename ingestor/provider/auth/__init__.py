"""The provider's token, which opens the socket.

api_key       the API key and the file it comes from
login         exchanges the API key for a token
claims        what a token says: its lifetime, its feeds, its secrets
token_source  the token that all connections share, renewed in time

The token is a secret that contains secrets: its claims repeat the API key, an e-mail address, a password hash and a
salt. ``login`` passes them to the redactor before it returns the token. The signature is not verified here; only the
provider can do that.
"""

from ingestor.provider.auth.claims import Token
from ingestor.provider.auth.token_source import TokenSource, TokenState

__all__ = ["Token", "TokenSource", "TokenState"]
