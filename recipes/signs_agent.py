"""An agent for signs, as somebody would write it who has never heard of Redraft: a loop around an OpenAI client.

It asks, works out how far off the answer is, has the model reflect on that, and asks again: five answers in all. Only
the rewards are for training: each answer's is sent when it is known.
"""

import re


async def solve(task, client):
    said, off = [{"role": "user", "content": task["question"]}], None

    async def ask(model):
        came = await client.chat.completions.create(model=model, messages=said)
        said.append({"role": "assistant", "content": came.choices[0].message.content})
        return said[-1]["content"]

    for turn in range(5):
        if turn:
            said.append({"role": "user", "content": f"?{'x' if off is None else off}\n"})
            await ask("redraft/reflection")
            said.append({"role": "user", "content": ""})
        off = off_by(await ask("redraft/attempt"), task["digits"], task["target"])
        await client.post("/reward", body={"reward": float(off == 0), "answer": str(off)}, cast_to=object)


def off_by(answer, digits, target):
    """How far an answer such as 7+1-2-8 is from the target; None where it is no answer."""
    if not re.fullmatch(r"[+-]".join(digits), answer):
        return None
    return sum(int(term) for term in re.findall(r"[+-]?\d", answer)) - target
