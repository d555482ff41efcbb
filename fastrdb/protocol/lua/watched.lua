-- Return how long ago the slowest watcher of this namespace left its heartbeat.
-- KEYS: the hash of the watchers
-- ARGV: none
-- Result: milliseconds by this server's clock; -1 if no watcher has ever left one
local now, oldest = now_ms(), -1
local fields = redis.call('HGETALL', KEYS[1])
for at = 1, #fields, 2 do
    if string.sub(fields[at], -6) == '\0alive' then oldest = math.max(oldest, now - tonumber(fields[at + 1])) end
end
return oldest
