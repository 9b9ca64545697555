"""Why a run that goes on cannot learn, told from its own figures."""
