"""Copies of runs in an object store: made while a run goes on, and fetched where its folder is not."""
