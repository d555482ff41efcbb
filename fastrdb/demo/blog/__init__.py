"""A blog for many tenants: an application of the size that people build, whose cache follows every write.

From the ground up: `models` has the tables, `schemas` the answers, `cache` the cache, `repository` a generic
repository, `services` the queries and writes, and `api` the routes. No write says what it invalidates.
"""
