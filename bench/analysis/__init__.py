"""Turns records on disk into a report: read/ -> judge/ -> show/ -> page.py."""
