"""verifiers: a taskset with a reward of its own, played by an agent of verifiers whose model is Redraft's endpoint."""

import asyncio
import json
import os
import sys

import openai
import verifiers.v1 as vf
from verifiers.v1.runtimes import ProgramResult

HERE = "verifiers_taskset"  # verifiers finds its parts as modules


class SumTask(vf.Task[vf.TaskData, vf.State, vf.TaskConfig]):
    @vf.reward
    async def right(self, trace) -> float:
        return float("9" in trace.last_reply)


class Sums(vf.Taskset[SumTask, vf.TasksetConfig]):
    def load(self):
        return [SumTask(vf.TaskData(idx=0, prompt=sys.argv[1]))]


class Chat(vf.Harness[vf.HarnessConfig]):
    """One completion a user's message, in this process."""

    SUPPORTS_RESUME, EXECUTES_CODE, NEEDS_CONTAINER = True, False, False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data, **_):
        said = data.prompt
        if isinstance(said, str):
            said = [{"role": "user", "content": said}]
        else:
            said = [{"role": one.role, "content": one.content} for one in said]
        async with openai.AsyncOpenAI(base_url=endpoint, api_key=secret) as client:
            await client.chat.completions.create(model=ctx.model, messages=said)
        return ProgramResult(0, "", "")


__all__ = ["Chat", "Sums"]


async def main() -> None:
    from verifiers.v1.utils.loaders import load_taskset

    [task] = load_taskset(vf.TasksetConfig(id=HERE)).load()
    client = {"type": "eval", "base_url": os.environ["OPENAI_BASE_URL"], "api_key_var": "OPENAI_API_KEY"}
    config = vf.AgentConfig(model="redraft", harness={"id": HERE}, runtime={"type": "subprocess"}, client=client)
    async with vf.Agent(config) as agent, agent.interaction(task) as talk:
        await talk.turn()
        await talk.turn("and 4 more?")
    trace = talk.trace
    if trace.errors:
        raise RuntimeError(str(trace.errors))
    print(json.dumps({"reward": trace.reward, "answer": trace.last_reply}))


if __name__ == "__main__":
    asyncio.run(main())
