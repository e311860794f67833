"""From spool to store: decode frames, build batches, commit them, retry dead letters."""
