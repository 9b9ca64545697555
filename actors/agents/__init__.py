"""Agents that are programs: they speak to an OpenAI-compatible endpoint, and what the model says there is trained.

actors/rollouts/agent.py    one episode: a program with a key of its own, then its turns and rewards
endpoint.py                 the HTTP side: keys, requests, errors in OpenAI's form
chat.py                     what a request asks for and what it is answered, as data
paths.py                    which tokens a request's messages are: those of a path that was played, and what is new
programs.py, program.py     the processes that programs run in
"""
