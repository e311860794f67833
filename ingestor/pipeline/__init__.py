"""From frame to row: entry, spool, decode, batch, writer."""
