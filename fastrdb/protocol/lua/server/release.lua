-- Give a lease back whose load is not stored. If there is no entry either, the index drops the key: else callers that ask
-- for keys that do not exist would fill the index.
-- KEYS: entry, lease, index, expiry
-- ARGV: token, prefix of leases, how many dead index members to remove
-- Result: 1 given back, 0 the lease does not hold this token
local entry, lease, index, expiry = unpack(KEYS)
local token, lease_prefix, limit = unpack(ARGV)

remove_dead(index, expiry, lease_prefix, limit) -- mechanism: release-sweeps
if token_in(redis.call('GET', lease)) ~= token then return 0 end -- mechanism: release-checks-token
redis.call('DEL', lease)
if redis.call('EXISTS', entry) == 0 then -- mechanism: release-forgets-missing
  redis.call('ZREM', index, entry)
  redis.call('ZREM', expiry, entry)
  forget(index, entry)
end
return 1
