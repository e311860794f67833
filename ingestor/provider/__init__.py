"""Everything that knows the provider: its endpoints, REST API, tokens, sockets and subscriptions."""
