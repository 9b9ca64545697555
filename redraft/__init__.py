"""The way in: command line, recipes, the controller, evaluation and reports."""

from redraft import own_path

__version__ = "0.1.0"
"""The only place of the version: packaging reads it here."""

own_path.keep_apart()  # before anything of the other packages is imported
