"""Parts for other libraries, each in a module of its own: `from fastrdb.integrations.fastapi import lifespan`.

A module needs the library that it is named after, and imports only public names of fastrdb.
"""
