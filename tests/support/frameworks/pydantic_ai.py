"""pydantic-ai: an agent with one tool."""

import json
import sys

sys.path.pop(0)  # this folder, where a file has the framework's name

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel

agent = Agent(OpenAIChatModel("redraft"), instructions="Use the tool.", system_prompt="Be brief.")


@agent.tool_plain
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


came = agent.run_sync(sys.argv[1])
print(json.dumps({"reward": float("9" in came.output), "answer": came.output}))
