"""``python -m ingestor`` is the command."""

from ingestor.cli import main

main()
