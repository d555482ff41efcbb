-- Store what was loaded or written, on a cluster, if the lease holds the token still.
-- KEYS: entry, lease, roster
-- ARGV: what the lease holds, raw, ttl ms
-- Result: 1 stored, 0 not. Sent twice: the second finds no lease and says 0; what is stored stays.
local entry, lease, roster = unpack(KEYS)
local token, raw, ttl_ms = unpack(ARGV)

local held = redis.call('GET', lease)
if held ~= token or not (is_sealed(held, READS) or is_sealed(held, WRITES)) then return 0 end -- mechanism: slot-lease-check
enlist(roster, entry, tonumber(ttl_ms))
redis.call('SET', entry, raw, 'PX', ttl_ms)
redis.call('DEL', lease)
redis.call('ZREM', roster, lease)
return 1
