"""LangGraph with langchain-openai: the agent that it makes of a model and its tools, asked twice in one thread."""

import json
import sys

sys.path.pop(0)  # this folder, where a file has the framework's name

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


agent = create_agent(ChatOpenAI(model="redraft"), [add], system_prompt="Use the tool.", checkpointer=InMemorySaver())
thread = {"configurable": {"thread_id": "1"}}
agent.invoke({"messages": [("user", sys.argv[1])]}, thread)
came = agent.invoke({"messages": [("user", "again")]}, thread)
said = came["messages"][-1].content
print(json.dumps({"reward": float("9" in said), "answer": said}))
