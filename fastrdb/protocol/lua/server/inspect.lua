-- What Redis holds for a key.
-- KEYS: entry, lease, barriers
-- ARGV: none
-- Result: {ttl ms (-1 none, -2 no entry), size in bytes, leased 0|1, barred 0|1}
local entry, lease, barriers = unpack(KEYS)
local is_barred = barred(barriers, entry) and 1 or 0
return {redis.call('PTTL', entry), redis.call('STRLEN', entry), redis.call('EXISTS', lease), is_barred}
