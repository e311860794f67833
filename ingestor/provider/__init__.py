"""Everything that knows the provider or Socket.IO."""
