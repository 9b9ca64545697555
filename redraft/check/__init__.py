"""Whether a run folder is as the promises of the design say, found from the folder alone."""
