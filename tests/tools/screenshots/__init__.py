"""The pictures in the README, taken of a real daemon: ``python -m tests.tools.screenshots``."""
