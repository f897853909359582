"""From records on disk to a report: gather -> scores -> claims, tables, plots -> page."""
