"""The cache of the blog. A worker that only writes imports this module and nothing else of the cache."""

from __future__ import annotations

import os

from redis.asyncio import Redis

from fastrdb import Cache

cache = Cache(Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379")), auto=True, namespace="blog")
