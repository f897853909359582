"""Checks whether records hold: by their files, and by rerunning them."""
