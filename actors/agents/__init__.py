"""Agents that are programs: they speak to an OpenAI-compatible endpoint, and what the model says there is trained.

actors/rollouts/agent.py    one episode: a program with a key of its own, then its turns and rewards
endpoint.py                 the HTTP side: keys, requests, errors in OpenAI's form
requests.py, answers.py     what a request asks for and what it is answered, as data
dialogues.py                requests to their answers
paths.py                    which tokens a request's messages are: those of a path that was played, and what is new
conversation.py             an episode: its turns, and what they are paid
programs.py, program.py     the processes that programs run in
"""
