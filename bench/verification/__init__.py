"""Does a record hold? What can be told from its files, and what a run made anew from it says."""
