"""The OpenAI Agents SDK: an agent with one tool, told to speak chat completions."""

import json
import sys

from agents import Agent, Runner, function_tool, set_default_openai_api, set_tracing_disabled

set_default_openai_api("chat_completions")
set_tracing_disabled(True)


@function_tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


agent = Agent(name="adder", instructions="Use the tool.", model="redraft", tools=[add])
came = Runner.run_sync(agent, sys.argv[1])
print(json.dumps({"reward": float("9" in came.final_output), "answer": came.final_output}))
