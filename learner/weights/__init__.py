"""Weights on their way to the actors: the blob that is published, and the proof that an engine computes with it."""
