"""A server that speaks AgentGym's protocol, in a process of its own:
`python -m support.agentgym_house PORT-FILE KIND [PORT]`.

Its game: the answer to task n is "say n"; other actions are answered with "no". KIND is one of

    plain      every session is let in
    webshop    a bare number as session, other names of the fields, no /close
    full       the fifth session is told that it is one too many, until another is closed
    breaks     the fifth session's connection is closed without an answer
    slow       /step is answered when the file PORT-FILE.go is there
"""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from support.waiting import until

SESSIONS = 4


class Room(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, file: Path, kind: str, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.kind, self.go, self.tasks, self.made, self.lock = kind, Path(f"{file}.go"), {}, 0, threading.Lock()
        self.most = 0
        made = Path(f"{file}.new")
        made.write_text(str(self.server_port))
        os.replace(made, file)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Room

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer({"open": len(self.server.tasks), "made": self.server.made})

    def do_POST(self):
        room, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        webshop = room.kind == "webshop"
        session = body.get("env_idx" if webshop else "id")
        if self.path == "/create":
            with room.lock:
                if len(room.tasks) >= SESSIONS and room.kind == "breaks":
                    self.close_connection = True
                    return
                if len(room.tasks) >= SESSIONS and room.kind == "full":
                    return self._answer({"error": f"{SESSIONS} sessions are the most"})
                room.made += 1
                room.tasks[room.made] = None
            return self._answer(room.made if webshop else {"id": room.made})
        if session not in room.tasks:
            return self._answer({"error": f"The id {session} is not valid."})
        if self.path == "/reset":
            room.tasks[session] = body["session_id" if webshop else "data_idx"]
            said = f"Say {room.tasks[session]}."
            return self._answer([said, None] if webshop else {"id": session, "observation": said, "done": False})
        if self.path == "/close" and not webshop:
            return self._answer({"closed": room.tasks.pop(session) is not None})
        if self.path == "/step":
            if room.kind == "slow":
                until(room.go.exists, "the test lets go", 120)
            right = body["action"] == f"say {room.tasks[session]}"
            said = "yes" if right else "no"
            return self._answer({"state" if webshop else "observation": said, "reward": float(right), "done": right})
        self._answer({"detail": "Not Found"}, 404)

    def _answer(self, said, status: int = 200) -> None:
        text = json.dumps(said).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
        except OSError:
            pass  # who asked has gone


if __name__ == "__main__":
    Room(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])).serve_forever()
