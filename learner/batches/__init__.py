"""Batches: claimed groups as micro-batches of every rank: claimed ahead, credited, linearised, weighed, packed."""
