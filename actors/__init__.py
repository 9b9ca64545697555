"""Make turns: engines generate, rollouts play tasks in environments, actors do many at once."""
