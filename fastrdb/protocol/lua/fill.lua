-- Store what was loaded, if nobody has invalidated the key since: then its lease holds the token still.
-- KEYS: entry, lease, index, expiry, barriers, server
-- ARGV: what the lease holds, raw, ttl ms, prefix of leases, how many dead index members to sweep
-- Result: 1 stored, 0 not. Sent twice: the second finds no lease and says 0; what is stored stays.
local entry, lease, index, expiry, barriers, server = unpack(KEYS)
local token, raw, ttl_ms, lease_prefix, limit = unpack(ARGV)

if not at_home(server, index, expiry, barriers) then return 0 end -- the lease may be one that was taken away before the restart
local stored = fill(index, expiry, entry, lease, token, raw, ttl_ms)
sweep_dead(index, expiry, lease_prefix, limit) -- mechanism: fill-sweeps
return stored
