"""The way in: command line, recipes, the controller, evaluation and reports."""

__version__ = "0.1.0"
"""The only place of the version: packaging reads it here."""
