"""Transcripts: a sample of what was trained on and evaluated, kept in the run folder for people to read."""
