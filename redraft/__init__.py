"""The way in: command line, recipes, the controller, evaluation and reports."""
