"""What is measured on test tasks, and the figures of episodes."""
