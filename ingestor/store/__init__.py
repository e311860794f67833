"""SQL: tables and views, the idempotent write, the queries of commands, and maintenance."""
