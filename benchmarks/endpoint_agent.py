"""The agent of `benchmarks.endpoint`: the dialogue that `retry` plays, through OpenAI's client."""

TURNS, FEEDBACK = 4, "no, 12 off"


async def solve(task, client):
    said = [{"role": "user", "content": task["question"]}]
    for turn in range(TURNS):
        if turn:
            said.append({"role": "user", "content": FEEDBACK})
        came = await client.chat.completions.create(model="redraft", messages=said)
        said.append({"role": "assistant", "content": came.choices[0].message.content})
    return 0.0
