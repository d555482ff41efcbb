"""The start page of the tutorial's application: what it answers, read from its own routes."""

from __future__ import annotations

from html import escape

from fastapi import FastAPI

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
td {{ border-bottom: 1px solid #ccc; padding: .4rem .6rem .4rem 0; vertical-align: top; }}
code {{ overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>The tutorial's application: users in a database, answered from Redis where it has them, and never from before the
last committed write.</p>
<p><a href="/docs">Try the routes in the documentation</a>, or look at
<a href="/users/?page=1&amp;limit=10">the first page of users</a>.</p>
<table>
{routes}
</table>
</body>
</html>
"""


def start_page(app: FastAPI) -> str:
    """The page as HTML."""
    rows = [
        f"<tr><td><code>{method.upper()} {escape(path)}</code></td><td>{escape(facts.get('description', ''))}</td></tr>"
        for path, methods in app.openapi()["paths"].items()
        for method, facts in methods.items()
    ]
    return _PAGE.format(title=escape(app.title), routes="\n".join(rows))
