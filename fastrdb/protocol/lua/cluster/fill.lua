-- Store what was loaded or written, on a cluster, if the lease is still there.
-- KEYS: entry, lease, roster
-- ARGV: the lease as lease.lua or take.lua gave it, raw, ttl ms
-- Result: 1 stored, 0 not. Sent twice: the second finds no lease and returns 0; what is stored stays.
local entry, lease, roster = unpack(KEYS)
local held, raw, ttl_ms = unpack(ARGV)

if not may_fill(lease, held) then return 0 end -- mechanism: lease-check
enlist(roster, entry, tonumber(ttl_ms))
redis.call('SET', entry, raw, 'PX', ttl_ms)
redis.call('DEL', lease)
redis.call('ZREM', roster, lease)
return 1
