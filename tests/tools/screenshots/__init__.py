"""Take the screenshot in the README: ``python -m tests.tools.screenshots``."""
