"""The model of a run: found, fetched, or made."""
