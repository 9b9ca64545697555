"""Watching a run: the live view, the whole terminal, and the page of dialogues."""
