"""SQL: tables and views, the idempotent write, and the questions that commands ask."""
