"""smolagents: an agent that calls tools; it writes what was said anew for each step."""

import json
import os
import sys

sys.path.pop(0)  # this folder, where a file has the framework's name

from smolagents import OpenAIServerModel, ToolCallingAgent, tool


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: one number
        b: the other
    """
    return a + b


model = OpenAIServerModel("redraft", api_base=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])
came = str(ToolCallingAgent([add], model, verbosity_level=0, max_steps=5).run(sys.argv[1]))
print(json.dumps({"reward": float("9" in came), "answer": came}))
