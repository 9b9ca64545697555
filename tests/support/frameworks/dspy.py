"""DSPy: ReAct with one tool; it writes the whole trajectory into each prompt."""

import json
import os
import sys

sys.path.pop(0)  # this folder, where a file has the framework's name

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it fetches a list at its import

import dspy

url, key = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
dspy.configure(lm=dspy.LM("openai/redraft", api_base=url, api_key=key, cache=False))  # else old answers are replayed


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


came = dspy.ReAct("question -> answer", tools=[add], max_iters=4)(question=sys.argv[1])
print(json.dumps({"reward": float("9" in came.answer), "answer": came.answer}))
