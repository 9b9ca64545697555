"""Starting runs: what is checked before, Ray, the command's own process, and evaluations without a controller."""
