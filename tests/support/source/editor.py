"""An editor that asks pyright's language server, by the Language Server Protocol."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import ROOT


class Editor:
    """One open file."""

    def __init__(self, server: subprocess.Popen[bytes], file: Path) -> None:
        self._server, self._uri, self._next = server, file.as_uri(), 0
        self._lines = file.read_text("utf-8").splitlines()
        folder = {"uri": file.parent.as_uri(), "name": "folder"}
        text_document = {"hover": {"contentFormat": ["plaintext"]}}
        capabilities = {"workspace": {"configuration": True}, "textDocument": text_document}
        self._ask("initialize", {"processId": None, "workspaceFolders": [folder], "capabilities": capabilities})
        self._send({"method": "initialized", "params": {}})
        document = {"uri": self._uri, "languageId": "python", "version": 1, "text": file.read_text("utf-8")}
        self._send({"method": "textDocument/didOpen", "params": {"textDocument": document}})

    def hover(self, line: str) -> str:
        """Return what is shown for the last name of the line with this text."""
        position = {"line": self._lines.index(line), "character": len(line) - 1}
        found = self._ask("textDocument/hover", {"textDocument": {"uri": self._uri}, "position": position})
        return str(found["contents"]["value"])

    def _ask(self, method: str, params: Any) -> Any:
        self._next += 1
        self._send({"id": self._next, "method": method, "params": params})
        while True:
            message = self._receive()
            if "method" not in message:
                if message["id"] == self._next:
                    return message["result"]
            elif "id" in message:  # the server asks back
                asked = message["params"].get("items", ()) if message["method"] == "workspace/configuration" else None
                settings = {"pythonPath": sys.executable, "analysis": {"extraPaths": [str(ROOT)]}}
                self._send({"id": message["id"], "result": asked and [settings for _ in asked]})

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self._server.stdin is not None
        self._server.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self._server.stdin.flush()

    def _receive(self) -> Any:
        assert self._server.stdout is not None
        length = 0
        while line := self._server.stdout.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        assert length, "the language server has ended"
        return json.loads(self._server.stdout.read(length))


@contextmanager
def editor(file: Path) -> Iterator[Editor]:
    """Open a file, and end the server afterwards."""
    command = [sys.executable, "-m", "pyright.langserver", "--stdio"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            yield Editor(server, file)
        finally:
            server.terminate()
