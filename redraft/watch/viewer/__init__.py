"""The viewer: `redraft view RUN`, a page on which people read what the agents said, turn by turn."""
