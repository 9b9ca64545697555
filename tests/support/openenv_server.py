"""A server that speaks OpenEnv's WebSocket protocol, run by its path: three guesses at the last digit of the seed.

`--sessions N` is how many it has at once, `--silent` has it close one too many without a word. It prints its port.
A guess of `crash` raises, one of `lost` ends the session, `hang` is never answered, `odd` is answered with nonsense.
"""

from __future__ import annotations

import argparse
import json
import threading

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

PATH = "/ws"


class Server:
    def __init__(self, sessions: int, silent: bool):
        self._room, self._silent = threading.Semaphore(sessions), silent

    def session(self, connection) -> None:
        if connection.request.path != PATH or not self._room.acquire(blocking=False):
            if not self._silent:
                connection.send(_error("no session is free", "CAPACITY_REACHED"))
            return
        try:
            seed, guesses = 0, 0
            for text in connection:
                said = json.loads(text)
                data = said.get("data", {})
                if said["type"] == "close":
                    return
                if said["type"] == "reset":
                    seed, guesses = data["seed"], 0
                    connection.send(_observed(f"guess {seed % 10}", None, False))
                elif not isinstance(data.get("guess"), str):
                    connection.send(_error("an action has a guess", "VALIDATION_ERROR"))
                elif data["guess"] == "crash":
                    connection.send(_error("division by zero", "EXECUTION_ERROR"))
                elif data["guess"] == "lost":
                    connection.send(_error("the session is lost", "SESSION_ERROR"))
                elif data["guess"] == "hang":
                    threading.Event().wait()
                elif data["guess"] == "odd":
                    connection.send("[]")
                else:
                    guesses += 1
                    right = data["guess"] == str(seed % 10)
                    connection.send(_observed("yes" if right else "no", float(right), right or guesses == 3))
        except ConnectionClosed:
            pass
        finally:
            self._room.release()


def _observed(text: str, reward: float | None, done: bool) -> str:
    data = {"observation": {"text": text}, "reward": reward, "done": done}
    return json.dumps({"type": "observation", "data": data})


def _error(message: str, code: str) -> str:
    return json.dumps({"type": "error", "data": {"message": message, "code": code}})


if __name__ == "__main__":
    asked = argparse.ArgumentParser()
    asked.add_argument("--sessions", type=int, default=100)
    asked.add_argument("--silent", action="store_true")
    asked.add_argument("--port", type=int, default=0)
    given = asked.parse_args()
    with serve(Server(given.sessions, given.silent).session, "127.0.0.1", given.port) as server:
        print(server.socket.getsockname()[1], flush=True)
        server.serve_forever()
