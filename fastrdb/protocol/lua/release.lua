-- Give a lease back whose load is not stored. Without it and without an entry, the index need not know of the key: who
-- asks for keys that there are not, without end, must not fill it.
-- KEYS: entry, lease, index, expiry
-- ARGV: token, prefix of leases, how many dead index members to sweep
-- Result: 1 given back, 0 it is not held by this token
local entry, lease, index, expiry = unpack(KEYS)
local token, lease_prefix, limit = unpack(ARGV)

sweep_dead(index, expiry, lease_prefix, limit) -- mechanism: release-sweeps
if token_in(redis.call('GET', lease)) ~= token then return 0 end -- mechanism: release-checks-token
redis.call('DEL', lease)
if redis.call('EXISTS', entry) == 0 then -- mechanism: release-forgets-missing
  redis.call('ZREM', index, entry)
  redis.call('ZREM', expiry, entry)
end
return 1
